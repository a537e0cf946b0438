//! The one table of options: what `-o` takes, its help, and where sshfs's and mount(8)'s belong.

/// Where an option stands in the help and in the README.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    Connection,
    Cache,
    Files,
    Mount,
}

impl Group {
    pub const ALL: [Self; 4] = [Self::Connection, Self::Cache, Self::Files, Self::Mount];

    pub fn title(self) -> &'static str {
        match self {
            Self::Connection => "Connection",
            Self::Cache => "Cache",
            Self::Files => "Files",
            Self::Mount => "Mount",
        }
    }
}

/// One option of `-o`, also to be given as `--NAME[=VALUE]`.
#[derive(Debug)]
pub struct Spec {
    pub name: &'static str,
    /// What stands for its value in the help; empty for an option without one.
    pub value: &'static str,
    pub help: &'static str,
    pub group: Group,
}

const fn spec(group: Group, name: &'static str, value: &'static str, help: &'static str) -> Spec {
    Spec {
        name,
        value,
        help,
        group,
    }
}

/// Options that do something, in the order of the help.
pub const OPTIONS: &[Spec] = &[
    spec(
        Group::Connection,
        "port",
        "PORT",
        "port of the SSH server, as -p",
    ),
    spec(
        Group::Connection,
        "timeout",
        "SECONDS",
        "give up on the host after so long without progress (30)",
    ),
    spec(
        Group::Connection,
        "max_conns",
        "N",
        "connections used side by side (4)",
    ),
    spec(
        Group::Connection,
        "max_names",
        "N",
        "names that a directory may have to be listed; each takes memory (500000)",
    ),
    spec(
        Group::Connection,
        "dialect",
        "auto|shell|scp-only",
        "use the host's shell, or its scp alone (auto: the shell where there is one)",
    ),
    spec(
        Group::Connection,
        "password_stdin",
        "",
        "read the password from standard input",
    ),
    spec(
        Group::Connection,
        "accept_host_key",
        "FINGERPRINT",
        "take this key for the host's, although earlier mounts had another",
    ),
    spec(
        Group::Cache,
        "cache_timeout",
        "SECONDS",
        "how long names, attributes and contents hold before the host is asked again (5)",
    ),
    spec(
        Group::Cache,
        "cache_size",
        "SIZE",
        "bytes of content to keep: 500M, 2G (10G, or a tenth of the disk if that is less)",
    ),
    spec(
        Group::Cache,
        "cache_dir",
        "DIR",
        "where to keep content (~/.cache/scpfs)",
    ),
    spec(
        Group::Cache,
        "min_free",
        "SIZE",
        "bytes of the local disk to leave alone (1G, or a twentieth of the disk if that is less)",
    ),
    spec(
        Group::Cache,
        "conflict",
        "HOW",
        "where another changed the file too: keep-both, overwrite theirs, or fail (keep-both)",
    ),
    spec(
        Group::Cache,
        "placement",
        "HOW",
        "replace files, write them inplace, or auto: append in place what was appended (auto)",
    ),
    spec(
        Group::Cache,
        "writeback",
        "SECONDS",
        "close a file once it is safe here, upload it so much later (off: closing waits for the host)",
    ),
    spec(
        Group::Cache,
        "offline",
        "yes|no",
        "show what is known, however old, while the host is away (no)",
    ),
    spec(
        Group::Files,
        "idmap",
        "user|none",
        "show files of the login user as yours, or with the host's ids (user)",
    ),
    spec(Group::Files, "uid", "N", "show all files as this user's"),
    spec(Group::Files, "gid", "N", "show all files as this group's"),
    spec(
        Group::Files,
        "umask",
        "OCTAL",
        "take these bits from all modes shown",
    ),
    spec(
        Group::Files,
        "symlinks",
        "contain|as-is",
        "hide links that lead out of the mount, or show all as they are (contain)",
    ),
    spec(Group::Mount, "ro", "", "read only"),
    spec(
        Group::Mount,
        "allow_other",
        "",
        "let other users use the mount",
    ),
    spec(Group::Mount, "allow_root", "", "let root use the mount"),
    spec(
        Group::Mount,
        "default_permissions",
        "",
        "let the kernel check permissions by mode bits",
    ),
    spec(
        Group::Mount,
        "fsname",
        "NAME",
        "name shown by mount and df ([user@]host:[dir])",
    ),
    spec(
        Group::Mount,
        "subtype",
        "NAME",
        "type shown after `fuse.` (scpfs)",
    ),
    spec(
        Group::Mount,
        "drain_timeout",
        "SECONDS",
        "at the end, how long to try to upload what is left (60)",
    ),
    spec(
        Group::Mount,
        "noexec",
        "",
        "run no programs from the mount; likewise exec, suid, nosuid, dev, nodev, noatime, sync, dirsync",
    ),
];

/// Options of mount(2) that are passed on; the last of a pair counts. nosuid and nodev are on
/// unless root says otherwise.
pub const MOUNT_FLAGS: &[&str] = &[
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "sync",
    "async",
    "dirsync",
];

/// Options that are for mount(8), systemd or fstab and say nothing to a filesystem.
const GENERIC: &[&str] = &[
    "rw",
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "_netdev",
    "nofail",
    "comment",
    "remount",
    "silent",
    "loud",
    "mand",
    "nomand",
    "iversion",
    "noiversion",
    "lazytime",
    "nolazytime",
];

/// Options of sshfs and of FUSE that mean nothing here: what they ask for is so anyway, or does
/// not exist.
const WITHOUT_MEANING: &[&str] = &[
    "reconnect",
    "delay_connect",
    "sshfs_sync",
    "no_readahead",
    "sync_readdir",
    "sync_read",
    "workaround",
    "cache",
    "dir_cache",
    "cache_stat_timeout",
    "cache_dir_timeout",
    "cache_link_timeout",
    "dcache_stat_timeout",
    "dcache_dir_timeout",
    "dcache_link_timeout",
    "dcache_max_size",
    "dcache_clean_interval",
    "dcache_min_clean_interval",
    "cache_max_size",
    "cache_clean_interval",
    "cache_min_clean_interval",
    "uidfile",
    "gidfile",
    "nomap",
    "ssh_command",
    "ssh_protocol",
    "sftp_server",
    "directport",
    "passive",
    "disable_hardlink",
    "dir_cache",
    "transform_symlinks",
    "contain_symlinks",
    "intr",
    "big_writes",
    "large_read",
    "hard_remove",
    "nonempty",
    "kernel_cache",
    "auto_cache",
    "noauto_cache",
    "remember",
    "noforget",
    "attr_timeout",
    "entry_timeout",
    "negative_timeout",
    "ac_attr_timeout",
    "max_read",
    "max_write",
    "max_readahead",
    "max_background",
    "congestion_threshold",
    "max_idle_threads",
    "max_threads",
    "clone_fd",
    "splice_read",
    "splice_write",
    "splice_move",
    "no_splice_read",
    "no_splice_write",
    "no_splice_move",
    "use_ino",
    "readdir_ino",
    "debug",
    "drop_privileges",
    "atomic_o_trunc",
    "async_read",
    "iosize",
    "noappledouble",
    "unrestrict",
    "blksize",
    "blkdev",
    "auto_unmount",
];

/// Keywords of `ssh_config(5)` that may be given with `-o`, in any case.
const SSH: &[&str] = &[
    "addkeystoagent",
    "addressfamily",
    "batchmode",
    "bindaddress",
    "bindinterface",
    "canonicaldomains",
    "canonicalizefallbacklocal",
    "canonicalizehostname",
    "canonicalizemaxdots",
    "canonicalizepermittedcnames",
    "casignaturealgorithms",
    "certificatefile",
    "checkhostip",
    "ciphers",
    "clearallforwardings",
    "compression",
    "connectionattempts",
    "connecttimeout",
    "controlmaster",
    "controlpath",
    "controlpersist",
    "fingerprinthash",
    "forwardagent",
    "forwardx11",
    "globalknownhostsfile",
    "gssapiauthentication",
    "gssapidelegatecredentials",
    "hashknownhosts",
    "hostbasedauthentication",
    "hostkeyalgorithms",
    "hostkeyalias",
    "hostname",
    "identitiesonly",
    "identityagent",
    "identityfile",
    "ipqos",
    "kbdinteractiveauthentication",
    "kexalgorithms",
    "loglevel",
    "macs",
    "nohostauthenticationforlocalhost",
    "numberofpasswordprompts",
    "passwordauthentication",
    "pkcs11provider",
    "port",
    "preferredauthentications",
    "proxycommand",
    "proxyjump",
    "proxyusefdpass",
    "pubkeyacceptedalgorithms",
    "pubkeyacceptedkeytypes",
    "pubkeyauthentication",
    "rekeylimit",
    "requiredrsasize",
    "revokedhostkeys",
    "rsaauthentication",
    "sendenv",
    "serveralivecountmax",
    "serveraliveinterval",
    "setenv",
    "stricthostkeychecking",
    "tcpkeepalive",
    "updatehostkeys",
    "user",
    "userknownhostsfile",
    "verifyhostkeydns",
];

/// What an option's name says.
#[derive(Debug)]
pub enum Kind {
    /// One of [`OPTIONS`].
    Ours(&'static Spec),
    MountFlag(&'static str),
    /// A keyword of `ssh_config(5)`.
    Ssh,
    /// Accepted, and without effect here.
    Ignored,
    Unknown,
}

/// Says what an option is by its name; `has_value` tells mount(8)'s `user` from ssh's `User=`.
pub fn kind(name: &str, has_value: bool) -> Kind {
    let name = if name == "dcache_timeout" {
        "cache_timeout"
    } else {
        name
    };
    if let Some(spec) = OPTIONS.iter().find(|spec| spec.name == name) {
        return Kind::Ours(spec);
    }
    if let Some(flag) = MOUNT_FLAGS.iter().find(|flag| **flag == name) {
        return Kind::MountFlag(flag);
    }
    if has_value && SSH.contains(&name.to_ascii_lowercase().as_str()) {
        return Kind::Ssh;
    }
    let is_generic = GENERIC.contains(&name) || name.starts_with("x-") || name.starts_with("X-");
    if is_generic || WITHOUT_MEANING.contains(&name) {
        Kind::Ignored
    } else {
        Kind::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_is_mounts_without_a_value_and_sshs_with_one() {
        assert!(matches!(kind("user", false), Kind::Ignored));
        assert!(matches!(kind("User", true), Kind::Ssh));
        assert!(matches!(kind("IdentityFile", true), Kind::Ssh));
        assert!(matches!(kind("x-systemd.automount", false), Kind::Ignored));
        assert!(matches!(kind("nosuid", false), Kind::MountFlag("nosuid")));
        assert!(matches!(kind("allow_othr", false), Kind::Unknown));
    }

    #[test]
    fn no_name_stands_in_two_tables() {
        for spec in OPTIONS {
            assert!(!GENERIC.contains(&spec.name) && !WITHOUT_MEANING.contains(&spec.name));
        }
        for flag in MOUNT_FLAGS {
            assert!(
                !GENERIC.contains(flag) && !WITHOUT_MEANING.contains(flag),
                "{flag}"
            );
        }
    }
}
