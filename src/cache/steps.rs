//! Named changes of the local disk, before each of which a test can simulate a crash or an error.

use std::fmt;
use std::io;

/// A change of the local disk that is visible after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    JournalPut,
    JournalSync,
    JournalDone,
    CreateContent,
    WriteContent,
    TruncateContent,
    FlushContent,
    /// Clean content is renamed to a dirty name, because it is about to be written.
    MakeDirty,
    /// Content is renamed to the name of its version.
    MakeClean,
    /// The file was unlinked: its content is renamed to a temporary name, which the next mount
    /// removes.
    MakeTemporary,
    RemoveContent,
}

/// Is called before each step.
pub trait Steps: Send + Sync + fmt::Debug {
    /// # Errors
    /// The step must not be done; the operation fails with this error.
    fn before(&self, step: Step) -> io::Result<()>;
}

/// Allows every step.
#[derive(Debug, Clone, Copy)]
pub struct NoSteps;

impl Steps for NoSteps {
    fn before(&self, _: Step) -> io::Result<()> {
        Ok(())
    }
}
