//! Abilities of a host, as its `Remote` reports them. The summary of a host is text for users, so
//! tests do not parse it.

use scpfs::remote::Remote;
use scpfs::remote::ability::Extent;
use scpfs::remote::ability::Operation;

/// How far a host can do an operation.
pub fn extent(remote: &dyn Remote, operation: Operation) -> Extent {
    let abilities = remote.abilities();
    let ability = abilities.iter().find(|it| it.what == operation).unwrap();
    ability.extent
}

/// Whether a host can do an operation, with or without limits.
pub fn can(remote: &dyn Remote, operation: Operation) -> bool {
    !matches!(extent(remote, operation), Extent::Impossible(_))
}

/// Whether this host with a shell transfers content by SCP.
pub fn has_scp(shell: &dyn Remote) -> bool {
    extent(shell, Operation::Read) == Extent::Full
}

/// Whether this host with a shell has `stat`, and not only `ls`.
pub fn has_stat(shell: &dyn Remote) -> bool {
    extent(shell, Operation::Stat) == Extent::Full
}
