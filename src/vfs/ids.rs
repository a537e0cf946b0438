//! Mapping between ids of the host and ids of this machine; pure.

/// How ids are mapped, in both directions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// The login user on the host, and the user of the mount here; `None` for `idmap=none`.
    pub user: Option<Pair>,
    pub group: Option<Pair>,
    /// `uid=` and `gid=`: every file is reported with these.
    pub shown_uid: Option<u32>,
    pub shown_gid: Option<u32>,
}

/// One user or group: its id on the host and its id here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    pub host: u32,
    pub local: u32,
}

impl Ids {
    /// Returns a mapping that changes no id.
    pub fn same() -> Self {
        Self {
            user: None,
            group: None,
            shown_uid: None,
            shown_gid: None,
        }
    }

    pub fn uid_to_local(&self, uid: u32) -> u32 {
        self.shown_uid.unwrap_or_else(|| to_local(self.user, uid))
    }

    pub fn gid_to_local(&self, gid: u32) -> u32 {
        self.shown_gid.unwrap_or_else(|| to_local(self.group, gid))
    }

    pub fn uid_to_host(&self, uid: u32) -> u32 {
        to_host(self.user, uid)
    }

    pub fn gid_to_host(&self, gid: u32) -> u32 {
        to_host(self.group, gid)
    }
}

fn to_local(pair: Option<Pair>, id: u32) -> u32 {
    match pair {
        Some(Pair { host, local }) if host == id => local,
        _ => id,
    }
}

fn to_host(pair: Option<Pair>, id: u32) -> u32 {
    match pair {
        Some(Pair { host, local }) if local == id => host,
        _ => id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_login_user_is_shown_as_the_user_of_the_mount() {
        let pair = Pair {
            host: 1000,
            local: 500,
        };
        let ids = Ids {
            user: Some(pair),
            group: None,
            ..Ids::same()
        };
        assert_eq!((ids.uid_to_local(1000), ids.uid_to_host(500)), (500, 1000));
        assert_eq!((ids.uid_to_local(7), ids.uid_to_host(7)), (7, 7));
        assert_eq!(ids.gid_to_local(1000), 1000);
        let ids = Ids {
            shown_uid: Some(33),
            ..ids
        };
        assert_eq!(ids.uid_to_local(1000), 33);
    }
}
