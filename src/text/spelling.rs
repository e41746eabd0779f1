//! The bytes that each token stands for, whichever way a tokenizer writes them into its vocabulary.

use tokenizers::DecoderWrapper;

use super::Tokenizer;

impl Tokenizer {
    /// For each id below [`Tokenizer::vocab_size`] the bytes that the token adds to a text; none for special tokens and
    /// for ids without a token.
    ///
    /// Understood are byte-level vocabularies (GPT-2, Qwen2, Llama 3) and those of SentencePiece, with a mark for the
    /// space and `<0x0A>` for a byte.
    pub fn token_bytes(&self) -> Vec<Option<Vec<u8>>> {
        let is_byte_level = match self.inner.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => true,
            Some(DecoderWrapper::Sequence(steps)) => {
                steps.get_decoders().iter().any(|step| matches!(step, DecoderWrapper::ByteLevel(_)))
            }
            _ => false,
        };
        let added = self.inner.get_added_tokens_decoder();
        let mut spelled = vec![None; self.vocab_size()];
        for (token, id) in self.inner.get_vocab(true) {
            let bytes = match added.get(&id) {
                Some(added) if added.special => None,
                Some(added) => Some(added.content.clone().into_bytes()),
                None if is_byte_level => from_byte_level(&token),
                None => Some(from_pieces(&token)),
            };
            if let Some(place) = spelled.get_mut(id as usize) {
                *place = bytes;
            }
        }
        spelled
    }
}

/// GPT-2's alphabet (`bytes_to_unicode`): a byte that prints is itself, the others are numbered from U+0100 on.
fn from_byte_level(token: &str) -> Option<Vec<u8>> {
    let prints = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    token
        .chars()
        .map(|c| match u8::try_from(u32::from(c)) {
            Ok(byte) => prints(byte).then_some(byte),
            Err(_) => {
                let number = u32::from(c).checked_sub(0x100)? as usize;
                (0..=u8::MAX).filter(|&byte| !prints(byte)).nth(number)
            }
        })
        .collect()
}

/// SentencePiece: `<0x0A>` is a byte, U+2581 a space.
fn from_pieces(token: &str) -> Vec<u8> {
    let byte = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    match byte.filter(|hex| hex.len() == 2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        Some(byte) => vec![byte],
        None => token.replace('\u{2581}', " ").into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::train_bpe;

    #[test]
    fn every_byte_has_its_token_and_tokens_spell_what_they_encode() {
        let tokenizer = train_bpe(["naïve pain\n, 39°C", "S82.201A, I10"].into_iter(), 300).unwrap();
        let spelled = tokenizer.token_bytes();
        let mut single: Vec<u8> = spelled.iter().flatten().filter(|bytes| bytes.len() == 1).map(|b| b[0]).collect();
        single.sort_unstable();
        assert_eq!(single, (0..=u8::MAX).collect::<Vec<u8>>());
        let text = "S82.201A — naïve pain\n, 39°C";
        let ids = tokenizer.encode(text).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| spelled[id as usize].clone().unwrap()).collect();
        assert_eq!(bytes, text.as_bytes());
        assert_eq!(spelled[tokenizer.eos_id() as usize], None);
    }

    #[test]
    fn pieces_of_sentencepiece_are_read() {
        assert_eq!(from_pieces("\u{2581}S82"), b" S82");
        assert_eq!(from_pieces("<0x2C>"), b",");
        assert_eq!(from_pieces("<0xZZ>"), b"<0xZZ>");
    }
}
