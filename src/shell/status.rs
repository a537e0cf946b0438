//! The statuses of the helper functions, one table for the scripts and for this side; pure.
//!
//! A helper answers with the exit status of a program or with one of these. A resident shell gets them
//! as variables of the same names, see [`assignments`].

/// Defines a constant for each status, and `ALL` with their names.
macro_rules! statuses {
    ($($(#[doc = $doc:literal])+ $name:ident = $value:literal,)+) => {
        $($(#[doc = $doc])+ pub(super) const $name: u32 = $value;)+

        /// All statuses with their names.
        const ALL: &[(&str, u32)] = &[$((stringify!($name), $name)),+];
    };
}

statuses! {
    /// The conflict check failed; nothing was changed.
    CONFLICT = 201,
    /// The name that was to be created exists.
    EXISTS = 202,
    /// The host has opened the file and reads exactly the announced content next.
    READY = 203,
    /// The temporary file is gone, or has not the size of all pieces.
    INCOMPLETE = 204,
    /// A partial upload: the target itself was being written when the upload failed.
    PARTIAL = 205,
    /// Success: there was a conflict, and the content is in a conflict copy.
    MADE_CONFLICT_COPY = 206,
    /// Success: the target was gone and was created again.
    RECREATED = 207,
    /// Success: there was a conflict, but the target has the same content.
    SAME_CONTENT = 208,
    /// Success: the target has the content, but its times could not be set.
    TIMES_NOT_SET = 209,
    /// Success: the target has the content, but the temporary file could not be removed. The times of
    /// the target may not be set either.
    TEMP_NOT_REMOVED = 210,
    /// The directory to mount does not exist.
    ROOT_MISSING = 211,
    /// The path to mount is not a directory.
    ROOT_NOT_A_DIRECTORY = 212,
    /// The directory to mount cannot be read.
    ROOT_DENIED = 213,
    /// The target exists, but no temporary file can be created beside it.
    NO_TEMP = 214,
    /// A name does not lead to the file that was opened under it: somebody else has replaced it.
    FILE_REPLACED = 215,
    /// Success: the file was sent, but the login user cannot write to it.
    UNWRITABLE = 216,
}

/// Returns the shell assignments that define the statuses, separated by spaces.
pub(super) fn assignments() -> String {
    let words: Vec<String> = ALL
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const SCRIPTS: &str = concat!(
        include_str!("helpers.sh"),
        include_str!("helpers/content.sh"),
        include_str!("helpers/probe.sh"),
    );

    /// The lines of the scripts that are sent to a host.
    fn code() -> String {
        let lines = SCRIPTS.lines().map(str::trim);
        let code: Vec<&str> = lines.filter(|line| !line.starts_with('#')).collect();
        code.join("\n")
    }

    #[test]
    fn scripts_use_exactly_the_statuses_of_the_table() {
        const NO_STATUS: [&str; 3] = ["ARGV", "HOME", "PATH"];
        let code = code();
        let is_other = |c: char| !c.is_ascii_uppercase() && c != '_';
        let constants = code.split('$').skip(1);
        let used: HashSet<&str> = constants
            .filter_map(|text| text.split(is_other).next())
            .filter(|name| !name.is_empty() && !NO_STATUS.contains(name))
            .collect();
        let table: HashSet<&str> = ALL.iter().map(|(name, _)| *name).collect();
        assert_eq!(used, table);
    }

    /// POSIX leaves 126 and above to the shell: 128 and a signal number. Three digits fit into a frame.
    #[test]
    fn statuses_are_distinct_and_those_of_no_signal() {
        let values: HashSet<u32> = ALL.iter().map(|(_, value)| *value).collect();
        assert_eq!(values.len(), ALL.len());
        assert!(values.iter().all(|value| (200..256).contains(value)));
    }

    #[test]
    fn scripts_contain_no_status_as_a_number() {
        let code = code();
        for (_, value) in ALL {
            assert!(!code.contains(&value.to_string()), "{value}");
        }
    }
}
