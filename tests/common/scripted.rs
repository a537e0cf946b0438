//! A host that answers by the script of a test, without a process, a thread or a sleep.
//!
//! A read when there is no output is a timeout at once.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use scpfs::ssh::Aborter;
use scpfs::ssh::Channel;
use scpfs::ssh::Connection;
use scpfs::ssh::Error;
use scpfs::ssh::Transport;
use scpfs::sync::Mutex;

/// The next output of a peer when the client waits for it.
pub enum Said {
    Bytes(Vec<u8>),
    /// The peer waits for input.
    Silence,
    End,
}

/// The other side of one command.
pub trait Peer: Send {
    /// Returns the next output; removes the input that it has processed from `heard`.
    fn say(&mut self, heard: &mut Vec<u8>) -> Said;
}

/// The behaviour of a peer after its last output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Then {
    Close,
    Silence,
    /// Repeats this output for ever.
    Endless(Vec<u8>),
}

/// Output that does not depend on the input, and the behaviour after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Talk {
    pub words: Vec<u8>,
    pub then: Then,
}

impl Talk {
    pub fn new(words: &[u8], then: Then) -> Self {
        Self {
            words: words.to_vec(),
            then,
        }
    }
}

impl Peer for Talk {
    fn say(&mut self, _heard: &mut Vec<u8>) -> Said {
        if !self.words.is_empty() {
            return Said::Bytes(std::mem::take(&mut self.words));
        }
        match &self.then {
            Then::Close => Said::End,
            Then::Silence => Said::Silence,
            Then::Endless(words) => Said::Bytes(words.clone()),
        }
    }
}

/// A peer that answers in turns: each is a number of bytes to receive, and the output after them.
#[derive(Debug, Clone)]
pub struct Turns {
    pub turns: Vec<(usize, Vec<u8>)>,
    pub then: Then,
}

impl Peer for Turns {
    fn say(&mut self, heard: &mut Vec<u8>) -> Said {
        let Some((n_heard, _)) = self.turns.first() else {
            return Talk::new(b"", self.then.clone()).say(heard);
        };
        if heard.len() < *n_heard {
            return Said::Silence;
        }
        heard.drain(..*n_heard);
        Said::Bytes(self.turns.remove(0).1)
    }
}

/// A source that sends an empty directory.
#[derive(Debug, Default)]
struct EmptyDirectory {
    n_said: u32,
}

impl Peer for EmptyDirectory {
    fn say(&mut self, heard: &mut Vec<u8>) -> Said {
        let Some(&first) = heard.first() else {
            return Said::Silence;
        };
        heard.remove(0);
        self.n_said += 1;
        match (self.n_said, first) {
            (1, 0) => Said::Bytes(b"T1700000000 0 1700000000 0\n".to_vec()),
            (2, 0) => Said::Bytes(b"D0755 0 dir\n".to_vec()),
            (3, 0) => Said::Bytes(b"E\n".to_vec()),
            _ => Said::End,
        }
    }
}

/// Traffic of all connections.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Bytes that the client sent since this was last cleared.
    pub sent: Mutex<Vec<u8>>,
    pub n_read: AtomicU64,
    pub commands: Mutex<Vec<String>>,
}

type MakePeer = dyn Fn(&str) -> Box<dyn Peer> + Send + Sync;

/// A host; each command gets a peer.
pub struct Scripted {
    banner: &'static str,
    make: Arc<MakePeer>,
    pub traffic: Arc<Traffic>,
}

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scripted")
    }
}

impl Scripted {
    pub fn new(
        banner: &'static str,
        make: impl Fn(&str) -> Box<dyn Peer> + Send + Sync + 'static,
    ) -> Self {
        Self {
            banner,
            make: Arc::new(make),
            traffic: Arc::default(),
        }
    }

    /// A scp-only host, which has an empty directory unless `act` has another script.
    pub fn scp(banner: &'static str, act: Act) -> Self {
        Self::new(banner, move |_| match act.lock().next() {
            Some(peer) => peer,
            None => Box::<EmptyDirectory>::default(),
        })
    }

    /// A host with a shell, which answers regularly unless `act` has another script.
    pub fn lane(flavour: &'static str, act: Act) -> Self {
        Self::new("SSH-2.0-OpenSSH_9.2", move |command| {
            let greeting = command.split("\\036").nth(1).unwrap_or_default();
            Box::new(LaneHost {
                flavour,
                greeting: greeting.as_bytes().iter().copied().take(32).collect(),
                words: None,
                act: Arc::clone(&act),
                acting: None,
            })
        })
    }
}

/// The scripts of the next commands, in order; the last one is used for all later commands.
#[derive(Debug, Default)]
pub struct Acts(Vec<Turns>);

pub type Act = Arc<Mutex<Acts>>;

impl Acts {
    pub fn set(&mut self, acts: Vec<Turns>) {
        self.0 = acts;
    }

    fn take(&mut self) -> Option<Turns> {
        match self.0.len() {
            0 => None,
            1 => self.0.first().cloned(),
            _ => Some(self.0.remove(0)),
        }
    }

    fn next(&mut self) -> Option<Box<dyn Peer>> {
        self.take().map(|turns| Box::new(turns) as _)
    }
}

impl From<Talk> for Turns {
    fn from(talk: Talk) -> Self {
        Self {
            turns: if talk.words.is_empty() {
                Vec::new()
            } else {
                vec![(0, talk.words)]
            },
            then: talk.then,
        }
    }
}

/// A resident shell, as far as the client can tell.
///
/// In its script, `@T@` stands for the token of the connection and `@K@` for the listing mark.
struct LaneHost {
    flavour: &'static str,
    greeting: Vec<u8>,
    /// Token and mark, after they were received.
    words: Option<(Vec<u8>, Vec<u8>)>,
    act: Act,
    acting: Option<Turns>,
}

impl Peer for LaneHost {
    fn say(&mut self, heard: &mut Vec<u8>) -> Said {
        if let Some(acting) = &mut self.acting {
            return acting.say(heard);
        }
        if !self.greeting.is_empty() {
            let greeting = std::mem::take(&mut self.greeting);
            return Said::Bytes([b"\x1e", &greeting[..], b"\n"].concat());
        }
        let Some((token, mark)) = &self.words else {
            let word = |name: &str| {
                let at = memchr::memmem::find(heard, name.as_bytes())? + name.len();
                heard.get(at..at + 32).map(<[u8]>::to_vec)
            };
            let (Some(token), Some(mark)) = (word("token="), word("listing_mark=")) else {
                return Said::Silence;
            };
            heard.clear();
            let frame = [b"\x1e", &token[..], b" 0\n"].concat();
            self.words = Some((token, mark));
            return Said::Bytes(frame);
        };
        // The first request starts with the helper functions, which end with the token.
        if heard.starts_with(b"helpers=;") {
            let last = [b"\n", &token[..], b"\n"].concat();
            let Some(at) = memchr::memmem::find(heard, &last) else {
                return Said::Silence;
            };
            heard.drain(..at + last.len());
        }
        let Some(end) = heard.iter().position(|&b| b == b'\n') else {
            return Said::Silence;
        };
        let line: Vec<u8> = heard.drain(..=end).collect();
        let facts = if line == b"answer 0\n" {
            String::new()
        } else if line.starts_with(b"probe ") {
            format!(
                "preset userland={} mv_option=-fT ln_option=-T touch_option=-h has_truncate=y has_scp=y \
                 byte_counter=dd has_fd_dir=y cp_attributes= ls_shows_acl=\n\
                 uid 1000\ngid 1000\ngroups 1000\nsystem Linux\ntimes epoch nanos\nroot /srv\n",
                self.flavour
            )
        } else {
            let Some(mut acting) = self.act.lock().take() else {
                return Said::End;
            };
            for (_, words) in &mut acting.turns {
                *words = replaced(words, b"@T@", token);
                *words = replaced(words, b"@K@", mark);
            }
            self.acting = Some(acting);
            return self.say(heard);
        };
        let frame = [b"\x1e", &token[..], b" 0\n"].concat();
        Said::Bytes([facts.as_bytes(), &frame].concat())
    }
}

fn replaced(text: &[u8], word: &[u8], by: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.windows(word.len()).position(|it| it == word) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(by);
        rest = &rest[at + word.len()..];
    }
    out.extend_from_slice(rest);
    out
}

impl Transport for Scripted {
    fn connect(&self) -> Result<Box<dyn Connection>, Error> {
        Ok(Box::new(ScriptedConnection {
            banner: self.banner,
            make: Arc::clone(&self.make),
            traffic: Arc::clone(&self.traffic),
        }))
    }
}

struct ScriptedConnection {
    banner: &'static str,
    make: Arc<MakePeer>,
    traffic: Arc<Traffic>,
}

impl fmt::Debug for ScriptedConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScriptedConnection")
    }
}

impl Connection for ScriptedConnection {
    fn exec(&mut self, command: &str) -> Result<Box<dyn Channel>, Error> {
        self.traffic.commands.lock().push(command.to_owned());
        Ok(Box::new(ScriptedChannel {
            peer: (self.make)(command),
            heard: Vec::new(),
            said: Vec::new(),
            traffic: Arc::clone(&self.traffic),
            timeout: Duration::ZERO,
        }))
    }

    fn aborter(&self) -> Aborter {
        Aborter::new(|| {})
    }

    fn keepalive(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn banner(&self) -> &str {
        self.banner
    }
}

struct ScriptedChannel {
    peer: Box<dyn Peer>,
    heard: Vec<u8>,
    said: Vec<u8>,
    traffic: Arc<Traffic>,
    timeout: Duration,
}

impl fmt::Debug for ScriptedChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScriptedChannel")
    }
}

impl Channel for ScriptedChannel {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
        if self.said.is_empty() {
            match self.peer.say(&mut self.heard) {
                Said::Bytes(bytes) => self.said = bytes,
                Said::End => return Ok(0),
                Said::Silence => {
                    return Err(Error::Timeout {
                        act: "reading",
                        timeout: self.timeout,
                    });
                }
            }
        }
        let n = buf.len().min(self.said.len());
        buf[..n].copy_from_slice(&self.said[..n]);
        self.said.drain(..n);
        self.traffic.n_read.fetch_add(n as u64, Ordering::SeqCst);
        Ok(n)
    }

    fn write_all(&mut self, data: &[u8]) -> Result<(), Error> {
        self.heard.extend_from_slice(data);
        self.traffic.sent.lock().extend_from_slice(data);
        Ok(())
    }

    fn discard_stderr(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    fn finish(mut self: Box<Self>) -> Result<Option<i32>, Error> {
        const MAX_LEFTOVER: usize = 1 << 20;
        let mut buf = vec![0; 64 << 10];
        let mut n_left = MAX_LEFTOVER;
        while n_left > 0 {
            match self.read(&mut buf)? {
                0 => return Ok(Some(0)),
                n => n_left = n_left.saturating_sub(n),
            }
        }
        Err(Error::Failed {
            act: "ending a command",
            detail: "it does not stop printing".to_owned(),
        })
    }
}
