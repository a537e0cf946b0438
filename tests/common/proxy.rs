//! A TCP proxy in front of a server, which fails on demand.
//!
//! Data that it received before a stall is delivered after the stall, however long that takes and
//! even if the other end has given up meanwhile, like TCP when a network works again.

use std::fs;
use std::io;
use std::io::Read as _;
use std::io::Write as _;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;
use scpfs::sync::Mutex;

use crate::sshd::Sshd;

/// The interval at which a connection checks for faults.
const LOOK: Duration = Duration::from_millis(10);

/// The delay between the last byte and the end of a connection.
const END: Duration = Duration::from_millis(200);

/// A proxy. It and its connections end when this is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

/// Connections are numbered; a fault applies to all below a number.
#[derive(Debug, Default)]
struct State {
    n_connections: u64,
    /// Data on these connections waits.
    stalled: u64,
    /// These connections are to be reset on both sides.
    dropped: u64,
    /// These connections are reset for the client; the server sees that later.
    parted: u64,
    refuses: bool,
    is_closed: bool,
}

impl Proxy {
    /// Puts a proxy in front of a server: the configuration files for clients name the proxy from
    /// now on.
    pub fn before(sshd: &Sshd) -> Self {
        let proxy = Self::between(("127.0.0.1", 0), ("127.0.0.1", sshd.port()));
        let port = proxy.address.port();
        let (old, new) = (sshd.port().to_string(), port.to_string());
        for (file, before) in [
            (sshd.known_hosts(), "[127.0.0.1]:"),
            (sshd.ssh_config(), "Port "),
        ] {
            let text = fs::read_to_string(&file).unwrap();
            let text = text.replace(&format!("{before}{old}"), &format!("{before}{new}"));
            fs::write(file, text).unwrap();
        }
        proxy
    }

    /// Forwards connections from one address to another, both in the network of this thread.
    pub fn between(from: (&str, u16), to: (&'static str, u16)) -> Self {
        let listener = TcpListener::bind(from).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.lock().is_closed {
                    return;
                }
                if shared.lock().refuses {
                    reset(&client);
                } else if let Ok(server) = TcpStream::connect(to) {
                    connect(&shared, client, server);
                }
            }
        });
        Self { address, state }
    }

    /// Stalls all connections, including new ones.
    pub fn stall(&self) {
        self.state.lock().stalled = u64::MAX;
    }

    /// Stalls existing connections; new ones work.
    pub fn stall_present(&self) {
        let mut state = self.state.lock();
        state.stalled = state.n_connections;
    }

    /// Resets existing connections.
    pub fn drop_present(&self) {
        let mut state = self.state.lock();
        state.dropped = state.n_connections;
    }

    /// Resets the existing connections for the client; the server sees the reset after
    /// [`Proxy::heal`].
    pub fn part_present(&self) {
        let mut state = self.state.lock();
        state.parted = state.n_connections;
    }

    /// Resets all connections, including new ones.
    pub fn refuse(&self) {
        let mut state = self.state.lock();
        state.dropped = state.n_connections;
        state.refuses = true;
    }

    /// Repairs everything.
    pub fn heal(&self) {
        let mut state = self.state.lock();
        state.dropped = state.dropped.max(state.parted);
        state.parted = 0;
        state.stalled = 0;
        state.refuses = false;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.lock().is_closed = true;
        // Wakes the thread that accepts connections.
        drop(TcpStream::connect(self.address));
    }
}

fn reset(stream: &TcpStream) {
    set_socket_linger(stream, Some(Duration::ZERO)).unwrap_or_default();
    drop(stream.shutdown(Shutdown::Both));
}

fn connect(state: &Arc<Mutex<State>>, client: TcpStream, server: TcpStream) {
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(LOOK)).unwrap();
        stream.set_write_timeout(Some(LOOK)).unwrap();
    }
    let id = {
        let mut state = state.lock();
        state.n_connections += 1;
        state.n_connections - 1
    };
    let (client, server) = (Arc::new(client), Arc::new(server));
    for is_up in [true, false] {
        let pump = Pump {
            id,
            state: Arc::clone(state),
            client: Arc::clone(&client),
            server: Arc::clone(&server),
            is_up,
        };
        thread::spawn(move || pump.run());
    }
}

/// One direction of a connection.
struct Pump {
    id: u64,
    state: Arc<Mutex<State>>,
    client: Arc<TcpStream>,
    server: Arc<TcpStream>,
    is_up: bool,
}

impl Pump {
    fn run(self) {
        let (mut from, mut to): (&TcpStream, &TcpStream) = if self.is_up {
            (&self.client, &self.server)
        } else {
            (&self.server, &self.client)
        };
        let mut buf = vec![0; 64 << 10];
        while self.may_go_on() {
            let n = match from.read(&mut buf) {
                Ok(n) => n,
                Err(error) if is_timeout(&error) => continue,
                Err(_) => 0,
            };
            let mut left = &buf[..n];
            loop {
                if !self.may_go_on() {
                    return;
                }
                if left.is_empty() {
                    break;
                }
                match to.write(left) {
                    Ok(n) => left = &left[n..],
                    Err(error) if is_timeout(&error) => {}
                    Err(_) => {
                        drop(from.shutdown(Shutdown::Both));
                        return;
                    }
                }
            }
            if n == 0 {
                // TCP sends the end of a connection in a packet of its own.
                thread::sleep(END);
                drop(to.shutdown(Shutdown::Write));
                return;
            }
        }
    }

    /// Waits while the connection is stalled; returns false if it was reset.
    fn may_go_on(&self) -> bool {
        loop {
            let (is_dropped, is_parted, is_stalled) = {
                let state = self.state.lock();
                (
                    state.is_closed || state.dropped > self.id,
                    state.parted > self.id,
                    state.stalled > self.id,
                )
            };
            if is_dropped {
                reset(&self.client);
                reset(&self.server);
                return false;
            }
            if is_parted {
                reset(&self.client);
            } else if !is_stalled {
                return true;
            }
            thread::sleep(LOOK);
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}
