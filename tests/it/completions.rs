//! Completion scripts and man pages, made from the definitions.

use std::io::Write as _;
use std::process::{Command, Stdio};

use axismapper::cli;

fn axismapper(args: &[&str]) -> Vec<u8> {
    let output = Command::new(env!("CARGO_BIN_EXE_axismapper")).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// What completing the last of `words` gives in bash.
fn completed(script: &str, words: &[&str]) -> String {
    let quoted = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
    let last = words.len() - 1;
    let ask = format!(
        "{script}\nCOMP_WORDS=({quoted}); COMP_CWORD={last}\n_axismapper axismapper \"${{COMP_WORDS[{last}]}}\" \
         \"${{COMP_WORDS[{}]}}\"\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
        last - 1
    );
    let mut bash =
        Command::new("bash").args(["--norc", "-s"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    bash.stdin.take().unwrap().write_all(ask.as_bytes()).unwrap();
    String::from_utf8(bash.wait_with_output().unwrap().stdout).unwrap()
}

#[test]
fn bash_completes_commands_and_options() {
    let script = String::from_utf8(axismapper(&["completions", "bash"])).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("axismapper.bash");
    std::fs::write(&file, &script).unwrap();
    assert!(Command::new("bash").arg("-n").arg(&file).status().unwrap().success());
    assert_eq!(completed(&script, &["axismapper", "doc"]).trim(), "doctor");
    let options = completed(&script, &["axismapper", "train", "--s"]);
    assert_eq!(options.split_whitespace().collect::<Vec<_>>(), ["--set", "--skip-checks", "--stop-pod"]);
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let script = String::from_utf8(axismapper(&["completions", shell])).unwrap();
        assert!(script.contains("doctor") && script.contains("price-per-hour"), "{shell}");
    }
}

#[test]
fn there_is_a_man_page_for_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("man");
    let told = String::from_utf8(axismapper(&["man", "--out", out.to_str().unwrap()])).unwrap();
    let whole = std::fs::read_to_string(out.join("axismapper.1")).unwrap();
    let mut n = 1;
    for command in cli::definition().get_subcommands() {
        let name = command.get_name();
        n += 1;
        let shown = name.replace('-', "\\-");
        assert!(whole.contains(&format!("axismapper\\-{shown}(1)")), "{name} is not listed");
        let page = std::fs::read_to_string(out.join(format!("axismapper-{name}.1"))).unwrap();
        assert!(page.contains(".TH"), "{name}: {page}");
        for below in command.get_subcommands() {
            n += 1;
            let page = out.join(format!("axismapper-{name}-{}.1", below.get_name()));
            assert!(page.is_file(), "{} is missing", page.display());
        }
    }
    assert!(told.starts_with(&format!("{n} pages")), "{told}, {n} commands");
}
