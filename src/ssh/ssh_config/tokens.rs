//! Expands the tokens of `ssh_config(5)` (such as `%h`) and `~`.

use std::path::Path;
use std::path::PathBuf;

use crate::ssh::settings::Settings;
use crate::ssh::ssh_config::LocalContext;

pub(super) struct Expander<'a> {
    pub(super) settings: &'a Settings,
    pub(super) local: &'a LocalContext,
}

impl Expander<'_> {
    /// Expands the tokens and a leading `~`. The result is absolute, because the daemon's working
    /// directory differs from that of the shell that started it.
    pub(super) fn path(&self, text: &str) -> PathBuf {
        let text = self.tokens(text);
        let path = match text.strip_prefix('~') {
            Some("") => self.local.home.clone(),
            Some(rest) if rest.starts_with('/') => {
                self.local.home.join(rest.trim_start_matches('/'))
            }
            _ => PathBuf::from(text),
        };
        std::path::absolute(&path).unwrap_or(path)
    }

    /// Expands the tokens; unknown ones are unchanged.
    pub(super) fn tokens(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            match chars.next() {
                Some('%') => out.push('%'),
                Some('d') => out.push_str(&display(&self.local.home)),
                Some('h') => out.push_str(&self.settings.hostname),
                Some('i') => out.push_str(&self.local.uid.to_string()),
                Some('k') => out.push_str(
                    self.settings
                        .host_key_alias
                        .as_ref()
                        .unwrap_or(&self.settings.host_alias),
                ),
                Some('L') => {
                    out.push_str(self.local.hostname.split('.').next().unwrap_or_default());
                }
                Some('l') => out.push_str(&self.local.hostname),
                Some('n') => out.push_str(&self.settings.host_alias),
                Some('p') => out.push_str(&self.settings.port.to_string()),
                Some('r') => out.push_str(&self.settings.user),
                Some('u') => out.push_str(&self.local.user),
                Some(other) => out.extend(['%', other]),
                None => out.push('%'),
            }
        }
        out
    }
}

/// Converts the home directory to text, because `ssh_config` values are text.
fn display(path: &Path) -> String {
    path.display().to_string()
}
