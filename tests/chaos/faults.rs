//! The faults: which component fails, for how long, and how it is repaired.

use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use scpfs_testing::network::Side;

use crate::scene::Scene;
use crate::scene::Way;
use scpfs_testing::random::Random;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// The daemon is killed.
    KillDaemon,
    /// The server is killed, with its sessions, and starts again after a while.
    KillServer,
    /// A process of a session is killed: a server process, or the shell of a connection.
    KillSession,
    /// The program that receives or sends content (`scp` or `dd`) is killed.
    KillScp,
    /// The sessions are stopped for a while.
    StopSessions,
    /// The server is stopped, with its sessions, for a while.
    StopServer,

    /// The interface of this side is down for a while: this side has no network.
    NetDown,
    /// The interface of the host is down for a while: this side has no carrier.
    NetDownAtHost,
    /// All packets are lost for a while.
    NetLoss,
    /// All packets to the host are lost for a while.
    NetLossOfRequests,
    /// All packets from the host are lost for a while: outcomes are unknown.
    NetLossOfAnswers,
    /// All packets of existing connections are lost for longer than the deadline of the daemon,
    /// which makes new connections.
    NetLossOnPresent,
    /// Packets to both sides are answered with resets for a while.
    NetReject,
    /// Packets to the host are answered with resets for a while, and do not reach the host.
    NetRejectRequests,
    /// Packets from the host are answered with resets for a while, and do not reach the daemon.
    NetRejectAnswers,
    /// The daemon is killed while all packets of its connections are lost; its requests arrive when
    /// the next daemon has started, or never.
    NetKillInLoss,

    /// The proxy delivers nothing for a while, and then everything.
    Stall,
    /// The proxy delivers nothing on existing connections for longer than the deadline of the
    /// daemon, which makes new ones; the requests on the old connections arrive late.
    StallPresent,
    /// All connections are reset.
    Reset,
    /// All connections are reset for the client, and the server sees that after a while.
    Part,
    /// All connections are reset, and new ones are refused for a while.
    Refuse,
    /// The daemon is killed while its connections are stalled; its requests arrive when the next
    /// daemon has started.
    KillStalled,
}

const OF_PROCESSES: &[Fault] = &[
    Fault::KillDaemon,
    Fault::KillServer,
    Fault::KillSession,
    Fault::KillScp,
    Fault::StopSessions,
    Fault::StopServer,
];

const OF_THE_WIRE: &[Fault] = &[
    Fault::NetDown,
    Fault::NetDownAtHost,
    Fault::NetLoss,
    Fault::NetLossOfRequests,
    Fault::NetLossOfAnswers,
    Fault::NetLossOnPresent,
    Fault::NetReject,
    Fault::NetRejectRequests,
    Fault::NetRejectAnswers,
    Fault::NetKillInLoss,
];

const OF_THE_PROXY: &[Fault] = &[
    Fault::Stall,
    Fault::StallPresent,
    Fault::Reset,
    Fault::Part,
    Fault::Refuse,
    Fault::KillStalled,
];

impl Fault {
    pub(crate) fn any(way: Way, random: &mut Random) -> Self {
        let of_the_way = match way {
            Way::Wire => OF_THE_WIRE,
            Way::Proxy => OF_THE_PROXY,
        };
        let all = [OF_PROCESSES, of_the_way].concat();
        all[usize::try_from(random.below(all.len() as u64)).unwrap()]
    }

    pub(crate) fn ends_the_daemon(self) -> bool {
        matches!(
            self,
            Self::KillDaemon | Self::KillStalled | Self::NetKillInLoss
        )
    }

    /// Must be called before programs write.
    pub(crate) fn prepare(self, scene: &mut Scene) {
        if self == Self::KillServer {
            scene.stand_by();
        }
    }

    /// Causes the fault, and repairs everything except a killed daemon, which the caller starts
    /// again.
    pub(crate) fn strike(self, scene: &mut Scene, random: &mut Random) {
        // Mostly shorter than the deadline of the daemon, which is 2 s.
        let is_long = random.one_in(if OF_THE_WIRE.contains(&self) { 4 } else { 6 });
        let longer = Duration::from_millis(2200 + random.below(1500));
        let shorter = Duration::from_millis(50 + random.below(700));
        let a_while = match self {
            Self::StallPresent | Self::NetLossOnPresent => longer,
            Self::KillStalled | Self::NetKillInLoss => {
                Duration::from_millis(20 + random.below(100))
            }
            Self::KillDaemon | Self::KillSession | Self::KillScp | Self::Reset => Duration::ZERO,
            _ if is_long => longer,
            _ => shorter,
        };
        self.begin(scene, random);
        thread::sleep(a_while);
        if self.ends_the_daemon() {
            scene.mounted.signal(Signal::KILL);
            return;
        }
        if self == Self::KillServer {
            scene.mounted.sshd.start_again();
        }
        scene.mend();
    }

    fn begin(self, scene: &mut Scene, random: &mut Random) {
        let (network, proxy) = (&scene.network, &scene.proxy);
        let sshd = &mut scene.mounted.sshd;
        match self {
            Self::KillDaemon => {}
            Self::KillServer => sshd.kill(),
            Self::KillSession => {
                let all = sshd.session_processes();
                if !all.is_empty() {
                    let at = usize::try_from(random.below(all.len() as u64)).unwrap();
                    sshd.kill_one(all[at].0);
                }
            }
            Self::KillScp => {
                for _ in 0..200 {
                    let all = sshd.session_processes();
                    let victim = all.iter().find(|(_, name)| name == "scp" || name == "dd");
                    if let Some((pid, _)) = victim {
                        sshd.kill_one(*pid);
                        break;
                    }
                    thread::sleep(Duration::from_millis(1));
                }
            }
            Self::StopSessions => sshd.freeze_sessions(),
            Self::StopServer => sshd.freeze(),
            Self::NetDown => network.take_down(Side::Near),
            Self::NetDownAtHost => network.take_down(Side::Far),
            Self::NetLoss => {
                network.lose(Side::Near);
                network.lose(Side::Far);
            }
            Self::NetLossOfRequests => network.lose(Side::Far),
            Self::NetLossOfAnswers => network.lose(Side::Near),
            Self::NetReject => network.refuse(),
            Self::NetRejectRequests => network.reject(Side::Far),
            Self::NetRejectAnswers => network.reject(Side::Near),
            Self::NetLossOnPresent | Self::NetKillInLoss => network.lose_present(),
            Self::Stall => proxy.stall(),
            Self::StallPresent | Self::KillStalled => proxy.stall_present(),
            Self::Reset => proxy.drop_present(),
            Self::Part => proxy.part_present(),
            Self::Refuse => proxy.refuse(),
        }
    }
}
