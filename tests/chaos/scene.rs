//! A daemon and a host, and the two ways in which the daemon can reach the host.

use crate::Mounted;
use scpfs_testing::network;
use scpfs_testing::network::Network;
use scpfs_testing::network::Side;
use scpfs_testing::proxy::Proxy;
use scpfs_testing::sshd;
use scpfs_testing::sshd::Sshd;

const ARGS: &[&str] = &["-o", "timeout=2,cache_timeout=1"];

/// How the daemon reaches the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Through a wire between two network namespaces: TCP connections end on the host.
    Wire,
    /// Through a proxy on the near side: it acknowledges data before it delivers them.
    Proxy,
}

/// The mount, the network and the proxy of a run. Dropping this repairs all of them except the
/// server.
pub(crate) struct Scene {
    pub(crate) mounted: Mounted,
    pub(crate) network: Network,
    pub(crate) proxy: Proxy,
    way: Way,
}

impl Scene {
    /// Moves this thread into the network of the daemon, and mounts there. Returns `None`, and
    /// reports a skip, if the machine lacks something.
    pub(crate) fn new(way: Way) -> Option<Self> {
        let network = Network::new()?;
        network.enter();
        let options = sshd::Options {
            address: network::HOST,
            ..sshd::Options::default()
        }
        .line(&format!("ListenAddress {}", network::HOST_BEHIND));
        let sshd = network.at(Side::Far, || Sshd::start(options))?;
        let port = sshd.port();
        let proxy = Proxy::between(("0.0.0.0", port), (network::HOST_BEHIND, port));
        if way == Way::Proxy {
            network.stand_in(true);
        }
        Some(Self {
            mounted: Mounted::on(sshd, ARGS)?,
            network,
            proxy,
            way,
        })
    }

    /// Prepares a server. No process may be started later, while a program writes to the mount: it
    /// would close copies of the program's descriptors, which uploads.
    pub(crate) fn stand_by(&mut self) {
        let sshd = &mut self.mounted.sshd;
        self.network.at(Side::Far, || sshd.stand_by());
    }

    pub(crate) fn mount(&mut self) {
        self.mounted.start(ARGS);
    }

    /// Chooses how the daemon reaches the host. Nothing may be mounted.
    pub(crate) fn take(&mut self, way: Way) {
        if way != self.way {
            self.network.stand_in(way == Way::Proxy);
            self.way = way;
        }
    }

    pub(crate) fn mend(&self) {
        self.network.heal();
        self.proxy.heal();
        self.mounted.sshd.thaw();
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.mend();
    }
}
