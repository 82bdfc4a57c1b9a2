//! Listening sockets, and what is done to sockets outside of the ring.

use std::io;
use std::mem::size_of_val;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use io_uring::types::Fd;
use io_uring::{cqueue, opcode};

use crate::event::{Event, Key, ListenerId};
use crate::queue::Completion;
use crate::ring::{Op, Ring};
use crate::slab::SlotId;

/// How long to leave a listener alone after an error that others must clear up.
const RETRY_AFTER: Duration = Duration::from_millis(100);

pub(crate) struct Listener {
    key: Key,
    fd: OwnedFd,
    /// The accept in flight.
    op: Option<SlotId>,
    retry_at: Option<Instant>,
    removed: bool,
}

impl Ring {
    /// Accepts connections on a listening socket until [`Ring::stop_listening`]; each one is an
    /// [`Event::Accepted`] with `key`.
    ///
    /// When descriptors or memory run out, that is an [`Event::AcceptFailed`], and accepting goes
    /// on a little later.
    pub fn listen(&mut self, key: Key, listener: impl Into<OwnedFd>) -> ListenerId {
        let fd = listener.into();
        let listener = Listener { key, fd, op: None, retry_at: None, removed: false };
        let id = self.listeners.insert(listener);
        self.arm_accept(id);
        ListenerId(id)
    }

    /// Stops accepting and closes the listening socket. There are no more events for it.
    pub fn stop_listening(&mut self, listener: ListenerId) {
        let Some(slot) = self.listeners.get_mut(listener.0) else { return };
        slot.removed = true;
        match slot.op {
            Some(op) => self.cancel(op),
            None => drop(self.listeners.remove(listener.0)),
        }
    }

    pub(crate) fn accepted(
        &mut self,
        op: SlotId,
        listener: SlotId,
        completion: Completion,
        events: &mut Vec<Event>,
    ) {
        let more = cqueue::more(completion.flags);
        let slot = self.listeners.get_mut(listener).expect("an accept keeps its listener's slot");
        if !more {
            slot.op = None;
            self.ops.remove(op);
        }
        let accepted = accepted_fd(completion);
        if slot.removed {
            if !more {
                self.listeners.remove(listener);
            }
            return;
        }
        let key = slot.key;
        match accepted {
            Ok(fd) => events.push(Event::Accepted { key, fd }),
            Err(error) => match error.raw_os_error() {
                // The peer or the kernel changed its mind: the next one, please.
                Some(libc::ECONNABORTED | libc::ECANCELED | libc::EINTR) => {}
                Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP) => {
                    self.listeners.remove(listener);
                    events.push(Event::AcceptFailed { key, error, retrying: false });
                    return;
                }
                // An error ends the multishot accept, so there is no other one in flight.
                _ => {
                    let retry_at = Instant::now() + RETRY_AFTER;
                    slot.retry_at = Some(retry_at);
                    self.accept_retry_at.get_or_insert(retry_at);
                    events.push(Event::AcceptFailed { key, error, retrying: true });
                    return;
                }
            },
        }
        if !more {
            self.arm_accept(listener);
        }
    }

    /// Takes up accepting again where it is due.
    pub(crate) fn retry_accepts(&mut self, now: Instant) {
        let mut due = Vec::new();
        self.accept_retry_at = None;
        for (id, listener) in self.listeners.iter_mut() {
            match listener.retry_at {
                Some(at) if at <= now => due.push(id),
                Some(at) => {
                    let earliest = self.accept_retry_at.get_or_insert(at);
                    *earliest = at.min(*earliest);
                }
                None => {}
            }
        }
        for id in due {
            self.arm_accept(id);
        }
    }

    fn arm_accept(&mut self, listener: SlotId) {
        let slot = self.listeners.get_mut(listener).expect("only called with a listener in place");
        assert!(slot.op.is_none(), "one accept per listener");
        let op = self.ops.insert(Op::Accept { listener });
        slot.op = Some(op);
        slot.retry_at = None;
        let fd = Fd(slot.fd.as_raw_fd());
        let entry = opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC).build();
        // SAFETY: no memory is involved; the listener's slot keeps the descriptor open until the
        // last completion.
        unsafe { self.queue.push(entry.user_data(op.to_bits())) };
    }
}

/// The connection in an accept's completion. Dropping the result closes it.
pub(crate) fn accepted_fd(completion: Completion) -> io::Result<OwnedFd> {
    if completion.result < 0 {
        return Err(io::Error::from_raw_os_error(-completion.result));
    }
    // SAFETY: the kernel made this descriptor for this completion, and each completion is
    // handled once.
    Ok(unsafe { OwnedFd::from_raw_fd(completion.result) })
}

/// A TCP socket that listens at `addr`, for [`Ring::listen`].
///
/// Connections accepted from it send small writes at once (TCP_NODELAY is inherited).
/// With `reuseport` several listeners may share the address; the kernel spreads connections.
///
/// # Errors
/// Those of `socket`, `bind` and `listen`.
pub fn listener(addr: SocketAddr, reuseport: bool, backlog: u32) -> io::Result<OwnedFd> {
    let fd = stream_socket(&addr)?;
    set_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    if reuseport {
        set_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    }
    nodelay(&fd)?;
    let addr = RawAddr::from(addr);
    // SAFETY: pointer and length name a socket address that outlives the call.
    let bound = unsafe { libc::bind(fd.as_raw_fd(), addr.as_ptr(), addr.len()) };
    if bound < 0 {
        return Err(io::Error::last_os_error());
    }
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    // SAFETY: no memory is involved.
    if unsafe { libc::listen(fd.as_raw_fd(), backlog) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

/// Makes a TCP socket send small writes at once (TCP_NODELAY).
///
/// # Errors
/// If it is not a TCP socket.
pub fn nodelay(socket: impl AsFd) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)
}

/// The address of this end of a TCP socket, listening or connected.
///
/// # Errors
/// Those of `getsockname`, or when no descriptor is left for the look.
pub fn local_addr(socket: impl AsFd) -> io::Result<SocketAddr> {
    TcpListener::from(socket.as_fd().try_clone_to_owned()?).local_addr()
}

/// The address of the other end of a TCP connection.
///
/// # Errors
/// Those of `getpeername`, or when no descriptor is left for the look.
pub fn peer_addr(socket: impl AsFd) -> io::Result<SocketAddr> {
    TcpStream::from(socket.as_fd().try_clone_to_owned()?).peer_addr()
}

/// A new TCP socket of the address's family.
pub(crate) fn stream_socket(addr: &SocketAddr) -> io::Result<OwnedFd> {
    let domain = if addr.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no memory is involved.
    let raw = unsafe { libc::socket(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn set_option(socket: impl AsFd, level: i32, name: i32, value: libc::c_int) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: pointer and length name `value`, which outlives the call.
    let done = unsafe {
        let length = size_of_val(&value) as libc::socklen_t;
        libc::setsockopt(fd, level, name, (&raw const value).cast(), length)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A socket address as the kernel wants it.
pub(crate) enum RawAddr {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

impl RawAddr {
    pub(crate) const fn as_ptr(&self) -> *const libc::sockaddr {
        match self {
            Self::V4(addr) => (&raw const *addr).cast(),
            Self::V6(addr) => (&raw const *addr).cast(),
        }
    }

    pub(crate) const fn len(&self) -> libc::socklen_t {
        let len = match self {
            Self::V4(addr) => size_of_val(addr),
            Self::V6(addr) => size_of_val(addr),
        };
        len as libc::socklen_t
    }
}

impl From<SocketAddr> for RawAddr {
    fn from(addr: SocketAddr) -> Self {
        match addr {
            SocketAddr::V4(addr) => Self::V4(libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: addr.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(addr.ip().octets()) },
                sin_zero: [0; 8],
            }),
            SocketAddr::V6(addr) => Self::V6(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: addr.port().to_be(),
                sin6_flowinfo: addr.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: addr.ip().octets() },
                sin6_scope_id: addr.scope_id(),
            }),
        }
    }
}
