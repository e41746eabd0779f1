//! Keys in a `.netrc` file, where `wandb login` leaves them.

/// The password of a host, or of `default` when no machine of that name is listed.
pub(super) fn password(text: &str, host: &str) -> Option<String> {
    let mut words = text.lines().filter(|line| !line.trim_start().starts_with('#')).flat_map(str::split_whitespace);
    let mut is_host = false;
    let mut is_default = false;
    let mut of_default = None;
    while let Some(word) = words.next() {
        match word {
            "machine" => (is_host, is_default) = (words.next() == Some(host), false),
            "default" => (is_host, is_default) = (false, true),
            "login" | "account" => drop(words.next()),
            "password" => {
                let value = words.next();
                if is_host {
                    return value.map(str::to_owned);
                }
                if is_default {
                    of_default = value.map(str::to_owned);
                }
            }
            _ => {}
        }
    }
    of_default
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_entry_comes_before_the_default() {
        let text = "# machine api.wandb.ai password no\ndefault login x password d\nmachine other\n  password o\n\
                    machine api.wandb.ai\n  login user\n  password secret\n";
        assert_eq!(password(text, "api.wandb.ai").as_deref(), Some("secret"));
        assert_eq!(password(text, "127.0.0.1").as_deref(), Some("d"));
        assert_eq!(password("machine a login password password p", "a").as_deref(), Some("p"));
        assert_eq!(password("machine a login x", "a"), None);
    }
}
