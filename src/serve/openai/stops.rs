//! Stop texts: an answer ends before the first of them, and nothing of one is ever shown.

/// Looks for stop texts in an answer that comes piece by piece.
#[derive(Clone, Debug, Default)]
pub struct StopScanner {
    stops: Vec<String>,
    /// Text that may be the beginning of a stop.
    held: String,
}

impl StopScanner {
    /// Looks for these texts.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    /// Takes the next piece; gives what can be shown, and whether a stop came right after it.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held += piece;
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = found {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let is_beginning = |tail: &str| self.stops.iter().any(|stop| stop.starts_with(tail));
        let starts = self.held.char_indices().map(|(at, _)| at);
        let at = starts.into_iter().find(|&at| is_beginning(&self.held[at..])).unwrap_or(self.held.len());
        let rest = self.held.split_off(at);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back, when the answer ends without a stop.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut scanner = StopScanner::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut text = String::new();
        for piece in pieces {
            let (new, is_over) = scanner.push(piece);
            text += &new;
            if is_over {
                return (text, true);
            }
        }
        (text + &scanner.finish(), false)
    }

    #[test]
    fn an_answer_ends_before_a_stop_however_it_is_cut() {
        assert_eq!(shown(&[","], &["I1", "0, R", "54"]), ("I10".into(), true));
        assert_eq!(shown(&["END"], &["aE", "N", "D", "b"]), ("a".into(), true));
        assert_eq!(shown(&["END"], &["aE", "N", "E", "N"]), ("aENEN".into(), false));
        assert_eq!(shown(&["ENEX", "b"], &["ENE", "NEX"]), ("EN".into(), true));
        assert_eq!(shown(&["long", "o"], &["al", "ong"]), ("a".into(), true));
        assert_eq!(shown(&["é"], &["caf", "é"]), ("caf".into(), true));
        assert_eq!(shown(&[], &["a", "b"]), ("ab".into(), false));
    }
}
