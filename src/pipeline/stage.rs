//! One training stage, from its settings to a `final/` folder.

use std::path::{Path, PathBuf};

use tch::{Device, Kind};

use super::records::{Loaded, load_preferences, load_sft};
use super::{Error, require_folder};
use crate::adapter::{self, Settings, TargetModules};
use crate::config::{self, Dtype, StageConfig};
use crate::fsio;
use crate::model::{self, Quantization, Qwen2};
use crate::stop::Stop;
use crate::tensor::Placement;
use crate::text::Tokenizer;
use crate::track::Console;
use crate::train::checkpoint::{Trained, save_trained};
use crate::train::{self, Outcome, Plan, Task};

/// A stage to be run.
#[derive(Debug)]
pub struct StageRequest<'a> {
    pub config: &'a StageConfig,
    /// Takes `config.yaml`, `metrics.jsonl`, checkpoints and `final/`.
    pub out: &'a Path,
    pub device: Device,
    /// Go on from the newest checkpoint in `out`.
    pub resume: bool,
}

/// A finished stage.
#[derive(Clone, Debug)]
pub struct StageOutcome {
    pub training: Outcome,
    /// The adapter, or the whole model after full fine-tuning.
    pub final_dir: PathBuf,
}

/// Loads model and data, trains, and writes `final/`: an adapter in PEFT layout, or a Hugging Face folder when the
/// stage has no `lora` section.
///
/// # Errors
/// When settings, model and data do not fit together, the work fails, or a stop is requested.
pub fn run_stage(request: &StageRequest<'_>, console: &Console, stop: &Stop) -> Result<StageOutcome, Error> {
    let config = request.config;
    let base = Path::new(&config.model.name);
    require_folder("model", base)?;
    fsio::make_dir(request.out)?;
    let yaml = config.to_yaml()?;
    fsio::write_atomic(&request.out.join("config.yaml"), |out| out.write_all(yaml.as_bytes()))?;
    let tokenizer = Tokenizer::load(base)?;
    let task = load_task(config, &tokenizer, console)?;

    let quantization = match (config.model.load_in_4bit, &config.lora) {
        (true, None) => return Err(Error::FullQuantized),
        (true, Some(_)) => Quantization::Nf4,
        (false, _) => Quantization::None,
    };
    let mut model = model::load(base, placement(config.model.dtype, request.device), quantization)?;
    let settings = attach(&mut model, config)?;
    let trained = match &settings {
        Some(settings) => Trained::Adapter { settings, base_model: &config.model.name },
        None => Trained::All,
    };
    let plan = Plan {
        name: &config.name,
        task: &task,
        training: &config.training,
        shuffle: config.data.shuffle,
        trained,
        out: request.out,
        resume: request.resume,
    };
    let training = train::run(&mut model, &plan, console, stop)?;

    let final_dir = request.out.join("final");
    match trained {
        Trained::Adapter { .. } => save_trained(&final_dir, trained, &model.parameters())?,
        Trained::All => {
            model::save(&model, &final_dir, tokenizer.eos_id(), tokenizer.pad_id())?;
            tokenizer.save(&final_dir)?;
        }
    }
    Ok(StageOutcome { training, final_dir })
}

/// Where and in which type a model computes.
pub fn placement(dtype: Dtype, device: Device) -> Placement {
    let dtype = match dtype {
        Dtype::Bfloat16 => Kind::BFloat16,
        Dtype::Float32 => Kind::Float,
    };
    Placement { device, dtype }
}

/// Puts the stage's adapter on the model, a new one or the one that it starts from; without one all weights train.
fn attach(model: &mut Qwen2, config: &StageConfig) -> Result<Option<Settings>, Error> {
    let Some(lora) = &config.lora else {
        if config.orpo.is_some() {
            return Err(Error::OrpoWithoutAdapter { file: config.name.clone() });
        }
        model.train_all()?;
        return Ok(None);
    };
    let no_dropout = config.orpo.as_ref().is_some_and(|orpo| orpo.disable_dropout);
    let dropout = if no_dropout { 0.0 } else { lora.lora_dropout };
    if let Some(dir) = &lora.init_adapter {
        let mut file = adapter::load(Path::new(dir))?;
        // Rank, alpha and targets are the stored adapter's own; what this stage may choose is the dropout.
        let stored = Settings { lora_dropout: lora.lora_dropout, ..file.settings.clone() };
        file.settings.lora_dropout = dropout;
        model::attach_adapter(model, file)?;
        return Ok(Some(stored));
    }
    let settings = Settings {
        r: lora.r,
        lora_alpha: lora.lora_alpha,
        lora_dropout: lora.lora_dropout,
        use_dora: lora.use_dora,
        use_rslora: lora.use_rslora,
        target_modules: match &lora.target_modules {
            config::TargetModules::Names(names) => TargetModules::Names(names.clone()),
            config::TargetModules::Pattern(pattern) => TargetModules::Pattern(pattern.clone()),
        },
        rank_pattern: lora.rank_pattern.clone().into(),
        alpha_pattern: lora.alpha_pattern.clone().into(),
    };
    model::new_adapter(model, &Settings { lora_dropout: dropout, ..settings.clone() }, lora.random_state)?;
    Ok(Some(settings))
}

fn load_task(config: &StageConfig, tokenizer: &Tokenizer, console: &Console) -> Result<Task, Error> {
    let validation = config.data.validation.as_deref();
    let max_seq_length = config.model.max_seq_length;
    Ok(match &config.orpo {
        None => {
            let load = |path: &Path| load_sft(path, tokenizer, max_seq_length);
            let (train, validation) = load_both(&config.data.train, validation, load, console)?;
            Task::Sft { train, validation }
        }
        Some(orpo) => {
            let load = |path: &Path| load_preferences(path, tokenizer, orpo.max_prompt_length, max_seq_length);
            let (train, validation) = load_both(&config.data.train, validation, load, console)?;
            Task::Orpo { train, validation, beta: orpo.beta, nll_on: orpo.nll_on }
        }
    })
}

fn load_both<T>(
    train: &Path,
    validation: Option<&Path>,
    load: impl Fn(&Path) -> Result<Loaded<T>, Error>,
    console: &Console,
) -> Result<(Vec<T>, Vec<T>), Error> {
    let read = |path: &Path| -> Result<Vec<T>, Error> {
        let loaded = load(path)?;
        if loaded.n_cut + loaded.n_dropped > 0 {
            let (n_cut, n_dropped) = (loaded.n_cut, loaded.n_dropped);
            console.note(&format!(
                "{}: {n_cut} records lost prompt tokens to fit, {n_dropped} could not be used",
                path.display()
            ));
        }
        Ok(loaded.records)
    };
    Ok((read(train)?, validation.map(read).transpose()?.unwrap_or_default()))
}
