//! Which release of the code set a command works with, and where fetched ones are kept.

use std::env;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use clap::builder::TypedValueParser as _;

use crate::codes::{self, Edition, Release};
use crate::diag::Diagnostic;

/// Names the folder for what is kept between runs, where no argument does.
const CACHE_VARIABLE: &str = "AXISMAPPER_CACHE";

/// Which release of the code set a command works with; the built-in one when nothing is said.
#[derive(Debug, Default, ClapArgs)]
pub struct ReleaseArgs {
    /// Use this code set instead of the built-in one: codes.json, a tabular list, an order file, or a zip with one
    #[arg(long, value_name = "FILE", conflicts_with = "release")]
    codes: Option<PathBuf>,
    /// Use this release instead of the built-in one, as in 2027 or 2025-april; `codes fetch` downloads it
    #[arg(long, value_name = "YEAR", value_parser = parse_edition)]
    release: Option<Edition>,
    #[command(flatten)]
    cache: CacheArgs,
}

/// The folder for what is kept between runs.
#[derive(Debug, Default, ClapArgs)]
pub struct CacheArgs {
    /// Keep fetched releases and the search index here [default: axismapper in the user's cache folder]
    #[arg(long, value_name = "DIR", env = CACHE_VARIABLE, hide_short_help = true,
        value_parser = clap::builder::OsStringValueParser::new().map(PathBuf::from))]
    cache_dir: Option<PathBuf>,
}

impl ReleaseArgs {
    /// Reads the release.
    ///
    /// # Errors
    /// What is wrong with the file, or that the release was not fetched.
    pub fn load(&self) -> Result<Release, codes::Error> {
        match (&self.codes, self.release) {
            (Some(path), _) => Release::load(path),
            (None, Some(edition)) => edition.load(self.cache_dir().as_deref()),
            (None, None) => Release::builtin(),
        }
    }

    /// The published release that is asked for; none when a file is.
    pub fn edition(&self) -> Option<Edition> {
        if self.codes.is_some() { None } else { Some(self.release.unwrap_or(Edition::BUILTIN)) }
    }

    /// As [`CacheArgs::dir`].
    pub fn cache_dir(&self) -> Option<PathBuf> {
        self.cache.dir()
    }
}

impl CacheArgs {
    /// What the environment says, for commands without these arguments.
    pub fn of_environment() -> Self {
        Self { cache_dir: env::var_os(CACHE_VARIABLE).map(PathBuf::from) }
    }

    /// The folder asked for, else `axismapper` in the user's cache folder; none without a home. It need not exist.
    pub fn dir(&self) -> Option<PathBuf> {
        let of_home = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let user_cache = || of_home("XDG_CACHE_HOME").or_else(|| Some(of_home("HOME")?.join(".cache")));
        // A variable that is set to nothing counts as not set.
        let given = self.cache_dir.clone().filter(|dir| !dir.as_os_str().is_empty());
        given.or_else(|| Some(user_cache()?.join("axismapper")))
    }

    /// Reads the release that `name` means: `builtin`, a file, or a release built in or fetched.
    ///
    /// # Errors
    /// What is wrong with the file, or that the release was not fetched.
    pub fn load(&self, name: &Path) -> Result<Release, codes::Error> {
        let edition = name.to_str().filter(|_| !name.exists()).and_then(|name| name.parse::<Edition>().ok());
        match edition {
            _ if name == Path::new("builtin") => Release::builtin(),
            Some(edition) => edition.load(self.dir().as_deref()),
            None => Release::load(name),
        }
    }
}

/// Reads the name of a release for clap, hint included.
pub fn parse_edition(text: &str) -> Result<Edition, String> {
    text.parse().map_err(|error: codes::Error| match error.hint() {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    })
}
