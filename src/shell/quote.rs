//! Quoting of arguments for the resident shell; pure.

/// Appends `word` as one quoted word of a command line.
///
/// Between single quotes only the single quote itself is special. A line cannot contain a newline,
/// so it is written as the variable `newline` of the resident shell. Tested for every byte with
/// dash, bash and BusyBox ash.
pub fn push_word(line: &mut Vec<u8>, word: &[u8]) {
    line.push(b'\'');
    for &byte in word {
        match byte {
            b'\'' => line.extend_from_slice(b"'\\''"),
            b'\n' => line.extend_from_slice(b"'\"$newline\"'"),
            // Neither the kernel nor `Name` permits a NUL; a shell could not hold one.
            0 => {}
            byte => line.push(byte),
        }
    }
    line.push(b'\'');
}

/// A command line for the resident shell, built word by word.
#[derive(Debug, Clone, Default)]
pub struct Line(Vec<u8>);

impl Line {
    /// Starts a line with unquoted text: a command name and its options.
    pub fn new(shell: &str) -> Self {
        Self(shell.as_bytes().to_vec())
    }

    /// Appends a quoted argument.
    #[must_use]
    pub fn arg(mut self, word: &[u8]) -> Self {
        self.0.push(b' ');
        push_word(&mut self.0, word);
        self
    }

    /// Appends the assignment of a quoted value to a variable.
    #[must_use]
    pub fn assign(mut self, name: &str, value: &[u8]) -> Self {
        self.0.push(b' ');
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(b'=');
        push_word(&mut self.0, value);
        self
    }

    /// Appends unquoted text.
    #[must_use]
    pub fn raw(mut self, shell: &str) -> Self {
        self.0.push(b' ');
        self.0.extend_from_slice(shell.as_bytes());
        self
    }

    /// Returns the line with its newline.
    pub fn finish(mut self) -> Vec<u8> {
        self.0.push(b'\n');
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_has_no_newline_and_no_open_quote() {
        let mut line = Vec::new();
        push_word(&mut line, b"it's\n$(x)\\");
        assert_eq!(line, b"'it'\\''s'\"$newline\"'$(x)\\'");
    }

    #[test]
    fn a_line_is_shell_and_words() {
        let line = Line::new("run rm --")
            .arg(b"-rf $HOME")
            .raw("&& answer_stats")
            .arg(b"")
            .finish();
        assert_eq!(line, b"run rm -- '-rf $HOME' && answer_stats ''\n");
    }
}
