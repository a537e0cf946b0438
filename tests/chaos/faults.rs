//! What breaks.

use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::mounted::Mounted;
use crate::proxy::Proxy;
use crate::writers::Random;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// The daemon is killed.
    KillDaemon,
    /// A process of a session is killed: the server's, or the shell of a lane.
    KillSession,
    /// The program that receives or sends content is killed.
    KillScp,
    /// The sessions are stopped for a while.
    StopSessions,
    /// The server is stopped, with its sessions, for a while.
    StopServer,
    /// Nothing passes the network for a while; then all that was sent arrives.
    Stall,
    /// Nothing passes on the connections that there are, for longer than the daemon waits; it makes
    /// new ones, and what was sent on the old arrives late.
    StallPresent,
    /// The connections are reset.
    Reset,
    /// The connections are reset, and the server does not hear of it for a while.
    Part,
    /// The connections are reset and no new ones can be made for a while.
    Refuse,
    /// The daemon is killed while its connections are stalled; what it had sent arrives when the
    /// next one is mounted.
    KillStalled,
}

const ALL: &[Fault] = &[
    Fault::KillDaemon,
    Fault::KillSession,
    Fault::KillScp,
    Fault::StopSessions,
    Fault::StopServer,
    Fault::Stall,
    Fault::StallPresent,
    Fault::Reset,
    Fault::Part,
    Fault::Refuse,
    Fault::KillStalled,
];

impl Fault {
    pub(crate) fn any(random: &mut Random) -> Self {
        ALL[usize::try_from(random.below(ALL.len() as u64)).unwrap()]
    }

    pub(crate) fn ends_the_daemon(self) -> bool {
        matches!(self, Self::KillDaemon | Self::KillStalled)
    }

    /// Breaks it, and mends all but what [`Fault::ends_the_daemon`] and
    /// [`Fault::mends_late`] say.
    pub(crate) fn strike(self, mounted: &Mounted, proxy: &Proxy, random: &mut Random) {
        let sshd = &mounted.sshd;
        // Mostly shorter than the daemon's patience, which is 2 s.
        let a_while = Duration::from_millis(match random.below(6) {
            0 => 2200 + random.below(1500),
            _ => 50 + random.below(700),
        });
        match self {
            Self::KillDaemon => mounted.signal(Signal::KILL),
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
            Self::StopSessions => {
                sshd.freeze_sessions();
                thread::sleep(a_while);
                sshd.thaw();
            }
            Self::StopServer => {
                sshd.freeze();
                thread::sleep(a_while);
                sshd.thaw();
            }
            Self::Stall => {
                proxy.stall();
                thread::sleep(a_while);
                proxy.heal();
            }
            Self::StallPresent => {
                proxy.stall_present();
                let longer = Duration::from_millis(2100 + random.below(1500));
                thread::sleep(longer);
                proxy.heal();
            }
            Self::Reset => proxy.drop_present(),
            Self::Part => {
                proxy.part_present();
                thread::sleep(a_while);
                proxy.heal();
            }
            Self::Refuse => {
                proxy.refuse();
                thread::sleep(a_while);
                proxy.heal();
            }
            Self::KillStalled => {
                proxy.stall_present();
                thread::sleep(Duration::from_millis(20 + random.below(100)));
                mounted.signal(Signal::KILL);
            }
        }
    }
}
