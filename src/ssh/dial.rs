//! Opens the stream to the host: a TCP connection, or the socket of a proxy.

use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::ToSocketAddrs as _;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::event::poll;
use rustix::io::Errno;
use rustix::net;
use rustix::net::AddressFamily;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::net::sockopt;

use super::Error;
use super::settings::Settings;
use crate::process;
use crate::process::ProxyChild;
use crate::process::Terminal;

/// How long a connection is idle before the kernel sends TCP keepalives. Routers drop idle
/// connections after a few minutes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Opens a stream to the host's SSH server, through the proxy if one is configured.
///
/// The address lookup and the attempt for each address block for at most the connect timeout each.
pub(super) fn dial(
    settings: &Settings,
    terminal: Terminal,
) -> Result<(OwnedFd, Option<ProxyChild>), Error> {
    if let Some(proxy) = &settings.proxy {
        let (child, stream) =
            ProxyChild::start(proxy, terminal).map_err(|source| Error::Proxy {
                command: process::describe(proxy),
                source,
            })?;
        return Ok((stream.into(), Some(child)));
    }
    let host = &settings.hostname;
    let failed = |source| Error::Connect {
        host: host.clone(),
        port: settings.port,
        source,
    };
    let bind = match &settings.bind_address {
        Some(text) => Some(text.parse::<IpAddr>().map_err(|_| Error::Config {
            detail: format!("BindAddress {} is not an address", text.escape_debug()),
        })?),
        None => None,
    };
    let mut addresses = addresses(settings).map_err(|source| Error::Resolve {
        host: host.clone(),
        source,
    })?;
    addresses.retain(|address| {
        settings.address_family.allows(address.ip())
            && bind.is_none_or(|bind| bind.is_ipv4() == address.is_ipv4())
    });
    let mut last = io::Error::new(
        io::ErrorKind::AddrNotAvailable,
        "the name has no address of the configured family",
    );
    for address in addresses {
        match connect(address, bind, settings.connect_timeout) {
            Ok(socket) => {
                tune(&socket, settings)
                    .unwrap_or_else(|err| log::debug!("cannot tune the socket: {err}"));
                return Ok((socket, None));
            }
            Err(err) => {
                log::debug!("cannot connect to {address}: {err}");
                last = err;
            }
        }
    }
    Err(failed(last))
}

/// Looks up the addresses of the host. A separate thread does it, because the resolver's timeout
/// cannot be set.
fn addresses(settings: &Settings) -> io::Result<Vec<SocketAddr>> {
    let target = (settings.hostname.clone(), settings.port);
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new()
        .name("resolver".to_owned())
        .spawn(move || {
            let target = (target.0.as_str(), target.1);
            let found = target.to_socket_addrs().map(Iterator::collect);
            // The receiver is gone if the time limit was reached.
            sender.send(found).unwrap_or_default();
        })?;
    receiver
        .recv_timeout(settings.connect_timeout)
        .unwrap_or_else(|_| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the address lookup took too long",
            ))
        })
}

fn connect(address: SocketAddr, bind: Option<IpAddr>, limit: Duration) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(family, SocketType::STREAM, flags, None)?;
    if let Some(bind) = bind {
        net::bind(&socket, &SocketAddr::new(bind, 0))?;
    }
    match net::connect(&socket, &address) {
        Ok(()) => return Ok(socket),
        Err(Errno::INPROGRESS | Errno::INTR) => {}
        Err(err) => return Err(err.into()),
    }
    wait_writable(&socket, limit)?;
    sockopt::socket_error(&socket)??;
    Ok(socket)
}

fn wait_writable(socket: impl AsFd, limit: Duration) -> io::Result<()> {
    let limit = Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    };
    loop {
        // A signal restarts the whole wait; signals are rare.
        match poll(&mut [PollFd::new(&socket, PollFlags::OUT)], Some(&limit)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(err) => return Err(err.into()),
        }
    }
}

/// Sends small packets at once (`TCP_NODELAY`) and detects an unreachable host on idle connections.
fn tune(socket: &OwnedFd, settings: &Settings) -> io::Result<()> {
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL)?;
    // Without this limit the kernel retransmits for about 15 minutes before it gives up.
    let limit = u32::try_from(settings.timeout.as_millis()).unwrap_or(u32::MAX);
    Ok(sockopt::set_tcp_user_timeout(socket, limit)?)
}
