//! The tables of `-o` options: those of scpfs with their help, and those accepted for other
//! programs.

/// The heading under which the help and README.md list an option.
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

/// One option of `-o`, which may also be given as `--NAME[=VALUE]`.
#[derive(Debug)]
pub struct Spec {
    pub name: &'static str,
    /// The placeholder of its value in the help; empty for an option without a value.
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

/// The options of scpfs, in the order of the help.
pub const OPTIONS: &[Spec] = &[
    spec(
        Group::Connection,
        "port",
        "PORT",
        "port of the SSH server; the same as -p",
    ),
    spec(
        Group::Connection,
        "timeout",
        "SECONDS",
        "fail a request after this time without progress (30)",
    ),
    spec(
        Group::Connection,
        "max_conns",
        "N",
        "maximum number of parallel connections (4)",
    ),
    spec(
        Group::Connection,
        "max_names",
        "N",
        "maximum number of names in a listed directory (500000)",
    ),
    spec(
        Group::Connection,
        "dialect",
        "auto|shell|scp-only",
        "use the shell of the host, or nothing but its scp (auto: the shell if it works)",
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
        "accept this host key although earlier mounts have pinned another one",
    ),
    spec(
        Group::Cache,
        "cache_timeout",
        "SECONDS",
        "how long names, attributes and content are used without asking the host (5)",
    ),
    spec(
        Group::Cache,
        "cache_size",
        "SIZE",
        "maximum size of cached content: 500M, 2G (10G, at most a tenth of the disk)",
    ),
    spec(
        Group::Cache,
        "cache_dir",
        "DIR",
        "directory of the caches (~/.cache/scpfs)",
    ),
    spec(
        Group::Cache,
        "min_free",
        "SIZE",
        "space to leave free on the local disk (1G, at most a twentieth of the disk)",
    ),
    spec(
        Group::Cache,
        "read_ahead",
        "SIZE|no",
        "content to fetch ahead for programs that walk through a tree (16M)",
    ),
    spec(
        Group::Cache,
        "partial_reads",
        "yes|no",
        "fetch only what is read of a large file; see docs/semantics.md for its limits (no)",
    ),
    spec(
        Group::Cache,
        "conflict",
        "HOW",
        "if the file was changed on the host too: keep-both, overwrite or fail (keep-both)",
    ),
    spec(
        Group::Cache,
        "placement",
        "HOW",
        "replace files atomically, write inplace, or auto: replace, but append in place (auto)",
    ),
    spec(
        Group::Cache,
        "writeback",
        "SECONDS",
        "close() returns before the upload, which starts this much later (0: close() waits)",
    ),
    spec(
        Group::Cache,
        "offline",
        "yes|no",
        "use cached data, however old, while the host cannot be reached (no)",
    ),
    spec(
        Group::Files,
        "idmap",
        "user|none",
        "show files of the login user as yours, or show the ids of the host (user)",
    ),
    spec(
        Group::Files,
        "uid",
        "N",
        "show this user as the owner of all files",
    ),
    spec(
        Group::Files,
        "gid",
        "N",
        "show this group as the group of all files",
    ),
    spec(
        Group::Files,
        "umask",
        "OCTAL",
        "clear these bits in all modes shown",
    ),
    spec(
        Group::Files,
        "symlinks",
        "contain|as-is",
        "refuse symlinks that lead out of the mount, or show all as they are (contain)",
    ),
    spec(Group::Mount, "ro", "", "read only"),
    spec(
        Group::Mount,
        "allow_other",
        "",
        "allow other users to use the mount",
    ),
    spec(
        Group::Mount,
        "allow_root",
        "",
        "allow root to use the mount",
    ),
    spec(
        Group::Mount,
        "default_permissions",
        "",
        "let the kernel check permissions by owner and mode",
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
        "how long the end of the mount may take for uploads (60)",
    ),
    spec(
        Group::Mount,
        "noexec",
        "",
        "do not run programs; also exec, suid, nosuid, dev, nodev, noatime, sync, dirsync",
    ),
];

/// Flags of mount(2), which are passed on. The last one of a pair wins. `nosuid` and `nodev` are
/// the default; `fusermount3` lets only root change them.
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

/// Options for mount(8), systemd or fstab, which have no meaning for a filesystem.
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

/// Options of sshfs and FUSE without effect here: scpfs always does what they ask for, or has no
/// such feature.
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

/// Keywords of `ssh_config(5)` in lower case; `-o` takes them in any case.
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

/// The kind of an option.
#[derive(Debug)]
pub enum Kind {
    /// One of [`OPTIONS`].
    Scpfs(&'static Spec),
    MountFlag(&'static str),
    /// A keyword of `ssh_config(5)`.
    Ssh,
    /// Accepted, but without effect.
    Ignored,
    Unknown,
}

/// Returns the kind of an option by its name. `has_value` tells `user` of mount(8) from `User=` of
/// ssh.
pub fn kind(name: &str, has_value: bool) -> Kind {
    let name = if name == "dcache_timeout" {
        "cache_timeout"
    } else {
        name
    };
    if let Some(spec) = OPTIONS.iter().find(|spec| spec.name == name) {
        return Kind::Scpfs(spec);
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
    fn kind_of_user_depends_on_its_value() {
        assert!(matches!(kind("user", false), Kind::Ignored));
        assert!(matches!(kind("User", true), Kind::Ssh));
        assert!(matches!(kind("IdentityFile", true), Kind::Ssh));
        assert!(matches!(kind("x-systemd.automount", false), Kind::Ignored));
        assert!(matches!(kind("nosuid", false), Kind::MountFlag("nosuid")));
        assert!(matches!(kind("allow_othr", false), Kind::Unknown));
    }

    #[test]
    fn no_name_is_in_two_tables() {
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
