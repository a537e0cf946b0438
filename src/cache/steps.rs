//! The steps after which a crash may happen, named, so that a test can have one happen there.

use std::fmt;
use std::io;

/// Something that changes what the local disk will show after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    JournalPut,
    JournalSync,
    JournalDone,
    CreateContent,
    WriteContent,
    TruncateContent,
    FlushContent,
    /// Clean content gets a name that says nothing, because it is about to be written to.
    MakeDirty,
    /// Content gets the name of its version.
    MakeClean,
    /// The file has no name any more, and its content none that a later run would look at.
    MakeTemporary,
    RemoveContent,
}

/// Told of each step before it is taken.
pub trait Steps: Send + Sync + fmt::Debug {
    /// # Errors
    /// The step is not to be taken.
    fn before(&self, step: Step) -> io::Result<()>;
}

/// Lets every step be taken.
#[derive(Debug, Clone, Copy)]
pub struct NoSteps;

impl Steps for NoSteps {
    fn before(&self, _: Step) -> io::Result<()> {
        Ok(())
    }
}
