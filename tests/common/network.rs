//! Two network namespaces with a wire between them, which fails on demand.
//!
//! The host is on the far side, its clients on the near one. Both have a real TCP, which
//! retransmits lost packets with growing delays. Nothing outside the two namespaces changes, and
//! the kernel removes them with the last process in them.
//!
//! Two shells that were started earlier run the commands that break the network: a process that
//! starts while files are open closes its copies of them, and on a mount such a close waits for the
//! host. Needs root, `ip` and `nft`; without them tests are skipped, or fail if `SCPFS_REQUIRE`
//! contains `network`.

use std::fs;
use std::fs::File;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::fd::AsRawFd as _;
use std::panic::resume_unwind;
use std::process::Child;
use std::process::ChildStdin;
use std::process::ChildStdout;
use std::process::Stdio;
use std::thread;

use rustix::thread::LinkNameSpaceType;
use rustix::thread::UnshareFlags;
use rustix::thread::move_into_link_name_space;
use rustix::thread::unshare_unsafe;
use scpfs::sync::Mutex;

use crate::capability::Capability;
use crate::capability::skip;
use crate::sshd::command;

/// The address of the host for its clients.
pub const HOST: &str = "10.80.0.2";

/// The address at which a stand-in for the host (see [`Network::stand_in`]) reaches the host.
pub const HOST_BEHIND: &str = "10.80.0.3";

/// Resets pass. Otherwise, if both sides reject, neither would receive the reset of the other.
const REJECT_BUT_RESETS: &str = "tcp flags & rst == 0 reject with tcp reset";

/// TCP keep-alive of the host. A connection whose client is gone ends a few seconds after the
/// network works again, although the packet that closed it was lost.
const FAR_SETTINGS: &[(&str, &str)] = &[
    ("tcp_keepalive_time", "2"),
    ("tcp_keepalive_intvl", "1"),
    ("tcp_keepalive_probes", "5"),
];

/// An end of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Near,
    Far,
}

/// Both sides. Dropping this repairs the network.
#[derive(Debug)]
pub struct Network {
    near: End,
    far: End,
    is_broken: Mutex<bool>,
}

/// A side: its namespace, and a shell in it.
#[derive(Debug)]
struct End {
    namespace: File,
    shell: Mutex<Shell>,
}

#[derive(Debug)]
struct Shell {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Network {
    /// Returns `None`, and reports a skip, if the machine lacks something.
    pub fn new() -> Option<Self> {
        // A network namespace belongs to a thread.
        let network = thread::spawn(Self::lay).join();
        let network = network.unwrap_or_else(|panic| resume_unwind(panic));
        if network.is_none() {
            skip(Capability::Network, "network namespaces with ip and nft");
        }
        network
    }

    fn lay() -> Option<Self> {
        let can = |program: &str| command(program).arg("-V").output().is_ok();
        if !rustix::process::geteuid().is_root() || !can("ip") || !can("nft") {
            return None;
        }
        let (far, near) = (End::new()?, End::new()?);
        let there = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            far.namespace.as_raw_fd()
        );
        near.sh(&format!(
            "ip link add name wire type veth peer name wire netns {there}"
        ));
        near.sh("ip addr add 10.80.0.1/24 dev wire");
        for address in [HOST, HOST_BEHIND] {
            far.sh(&format!("ip addr add {address}/24 dev wire"));
        }
        for (name, value) in FAR_SETTINGS {
            far.sh(&format!("echo {value} >/proc/sys/net/ipv4/{name}"));
        }
        for end in [&near, &far] {
            end.sh("ip link set lo up");
            end.sh("ip link set wire up");
            end.sh("nft add table inet cut");
            end.sh("nft add chain inet cut input '{ type filter hook input priority 0; }'");
        }
        Some(Self {
            near,
            far,
            is_broken: Mutex::new(false),
        })
    }

    fn end(&self, side: Side) -> &End {
        match side {
            Side::Near => &self.near,
            Side::Far => &self.far,
        }
    }

    /// Moves this thread, and processes that it starts from now on, to the near side.
    pub fn enter(&self) {
        move_to(&self.near.namespace);
    }

    /// Runs `op` on a side, on a thread of its own. Processes that it starts stay on that side.
    pub fn at<T: Send>(&self, side: Side, op: impl FnOnce() -> T + Send) -> T {
        let namespace = &self.end(side).namespace;
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_to(namespace);
                op()
            });
            let result = thread.join();
            result.unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Sets whether new connections to the host end on the near side, where a stand-in listens.
    pub fn stand_in(&self, is_there: bool) {
        let act = if is_there { "add" } else { "del" };
        self.near.sh(&format!("ip addr {act} {HOST}/32 dev lo"));
    }

    /// Takes an interface down: this side has no network, and the other side no carrier.
    pub fn take_down(&self, side: Side) {
        *self.is_broken.lock() = true;
        self.end(side).sh("ip link set wire down");
    }

    /// Drops all packets that arrive at a side.
    pub fn lose(&self, side: Side) {
        self.rule(side, "drop");
    }

    /// Drops all packets of existing connections; new connections work.
    pub fn lose_present(&self) {
        let ports = self.at(Side::Near, ports_of_connections);
        if ports.is_empty() {
            return;
        }
        let ports = ports.join(", ");
        self.rule(Side::Far, &format!("tcp sport {{ {ports} }} drop"));
        self.rule(Side::Near, &format!("tcp dport {{ {ports} }} drop"));
    }

    /// Answers all packets that arrive at a side with resets; the side itself does not see the
    /// packets.
    pub fn reject(&self, side: Side) {
        self.rule(side, "meta l4proto tcp reject with tcp reset");
    }

    /// Resets both ends of each connection on which something is sent, and refuses new ones.
    pub fn refuse(&self) {
        for side in [Side::Near, Side::Far] {
            self.rule(side, REJECT_BUT_RESETS);
        }
    }

    fn rule(&self, side: Side, rule: &str) {
        *self.is_broken.lock() = true;
        let rule = format!("nft 'add rule inet cut input iifname wire {rule}'");
        self.end(side).sh(&rule);
    }

    /// Repairs everything.
    pub fn heal(&self) {
        let mut is_broken = self.is_broken.lock();
        if !*is_broken {
            return;
        }
        for end in [&self.near, &self.far] {
            end.sh("nft flush chain inet cut input");
            end.sh("ip link set wire up");
        }
        *is_broken = false;
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.heal();
    }
}

impl End {
    /// Moves this thread into a new namespace; returns `None` if that is not permitted.
    fn new() -> Option<Self> {
        // SAFETY: only this thread changes its network, and its descriptors stay shared.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.ok()?;
        let namespace = File::open("/proc/thread-self/ns/net").ok()?;
        let mut shell = command("sh");
        shell.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = shell.spawn().ok()?;
        let shell = Shell {
            input: child.stdin.take()?,
            output: BufReader::new(child.stdout.take()?),
            child,
        };
        Some(Self {
            namespace,
            shell: Mutex::new(shell),
        })
    }

    /// Runs a script in the shell; panics if it fails.
    fn sh(&self, script: &str) {
        let mut shell = self.shell.lock();
        writeln!(shell.input, "{script}; echo $?").unwrap();
        let mut status = String::new();
        shell.output.read_line(&mut status).unwrap();
        assert_eq!(status, "0\n", "{script}");
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        self.child.wait().unwrap();
    }
}

fn move_to(namespace: &File) {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}

/// The local ports of the connections from this side to the host.
fn ports_of_connections() -> Vec<String> {
    // Each line has a number, the local and the remote address with port in hexadecimal, and more.
    let table = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let host = HOST.parse::<std::net::Ipv4Addr>().unwrap().octets();
    let host = format!("{:08X}:", u32::from_ne_bytes(host));
    let ports = table.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (local, remote) = (words.next()?, words.next()?);
        let (_, port) = local.split_once(':')?;
        remote.starts_with(&host).then(|| format!("0x{port}"))
    });
    ports.collect()
}
