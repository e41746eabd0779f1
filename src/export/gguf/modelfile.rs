//! Ollama's `Modelfile` beside a GGUF file: the prompt as in training, greedy answers, where an answer ends.

/// The text of a `Modelfile` for a GGUF file of this name. `system` is the instruction of the training records.
pub fn modelfile(gguf_name: &str, system: &str) -> String {
    // Ollama's own template language; the turns are those of Qwen2.5's chat template.
    let template =
        "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n";
    let quote = |text: &str| format!("\"\"\"{}\"\"\"", text.replace("\"\"\"", "\"\" \""));
    format!(
        "FROM ./{gguf_name}\n\
         TEMPLATE {}\n\
         SYSTEM {}\n\
         PARAMETER temperature 0\n\
         PARAMETER repeat_penalty 1.0\n\
         PARAMETER num_predict 128\n\
         PARAMETER stop \"<|im_end|>\"\n\
         PARAMETER stop \"<|endoftext|>\"\n",
        quote(template),
        quote(system),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_modelfile_names_the_model_and_how_it_was_asked_in_training() {
        let text = modelfile("m.gguf", "Answer with codes.");
        assert!(text.starts_with("FROM ./m.gguf\n"));
        assert!(text.contains("SYSTEM \"\"\"Answer with codes.\"\"\"\n"));
        assert!(text.contains("PARAMETER temperature 0\n") && text.contains("PARAMETER repeat_penalty 1.0\n"));
    }
}
