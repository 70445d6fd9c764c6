//! What the two ends of a tunnel say to each other: requests, refusals, datagrams.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use coracle_wasi_host::net::{DATAGRAM_BYTES_MAX, NetError};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use std::net::{IpAddr, SocketAddr};

/// The path of a stream that carries one TCP connection.
pub(super) const TCP_PATH: &str = "/v1/tcp";

/// The path of a stream that carries datagrams one way.
pub(super) const DATAGRAMS_PATH: &str = "/v1/datagrams";

const FROM: &str = "coracle-from";
const TO: &str = "coracle-to";
const CLIENT: &str = "coracle-client";
const ERROR: &str = "coracle-error";

/// A TCP connection to a pod, as its dialer asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    /// For whom the node itself wants it.
    pub(crate) client: Option<IpAddr>,
}

/// The request that opens a TCP connection. None where an address would not fit a header, which none does.
pub(super) fn tcp_request(opening: &Opening) -> Option<Request<()>> {
    let mut request = Request::post(format!("https://fabric{TCP_PATH}"))
        .header(FROM, opening.from.to_string())
        .header(TO, opening.to.to_string());
    if let Some(client) = opening.client {
        request = request.header(CLIENT, client.to_string());
    }
    request.body(()).ok()
}

/// The request that opens a stream of datagrams.
pub(super) fn datagrams_request() -> Option<Request<()>> {
    Request::post(format!("https://fabric{DATAGRAMS_PATH}")).body(()).ok()
}

/// What a [`tcp_request`] asks for.
pub(super) fn opening(headers: &HeaderMap) -> Option<Opening> {
    let text = |name| headers.get(name)?.to_str().ok();
    let address = |name| text(name)?.parse().ok();
    let client = text(CLIENT).and_then(|client| client.parse().ok());
    Some(Opening { from: address(FROM)?, to: address(TO)?, client })
}

/// The answer to a request that was not granted.
pub(super) fn refusal(error: NetError) -> Response<()> {
    let word = match error {
        NetError::ConnectionRefused => "refused",
        NetError::TimedOut => "timed-out",
        NetError::AccessDenied => "denied",
        _ => "unreachable",
    };
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response.headers_mut().insert(ERROR, HeaderValue::from_static(word));
    response
}

/// What a [`refusal`] said.
pub(super) fn refused(headers: &HeaderMap) -> NetError {
    match headers.get(ERROR).map(HeaderValue::as_bytes) {
        Some(b"refused") => NetError::ConnectionRefused,
        Some(b"timed-out") => NetError::TimedOut,
        Some(b"denied") => NetError::AccessDenied,
        _ => NetError::HostUnreachable,
    }
}

/// One datagram between two pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Datagram {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) payload: Bytes,
}

/// A stream of datagrams that is none.
#[derive(Debug)]
pub(super) struct Garbled;

const LENGTH_BYTES: usize = 2;

impl Datagram {
    /// Length of the payload, the two addresses, the payload.
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(LENGTH_BYTES + 2 * 19 + self.payload.len());
        out.put_u16(self.payload.len() as u16);
        put_address(&mut out, self.from);
        put_address(&mut out, self.to);
        out.put_slice(&self.payload);
        out.freeze()
    }

    /// Takes a whole datagram off the front of `buffer`, or leaves it as it is where there is none yet.
    pub(super) fn decode(buffer: &mut BytesMut) -> Result<Option<Datagram>, Garbled> {
        let mut front = &buffer[..];
        if front.len() < LENGTH_BYTES {
            return Ok(None);
        }
        let length = usize::from(front.get_u16());
        if length > DATAGRAM_BYTES_MAX {
            return Err(Garbled);
        }
        let (Some(from), Some(to)) = (take_address(&mut front)?, take_address(&mut front)?) else {
            return Ok(None);
        };
        if front.len() < length {
            return Ok(None);
        }
        let head = buffer.len() - front.len();
        buffer.advance(head);
        // A piece of the buffer would keep all of it for as long as the datagram waits for its reader.
        let payload = Bytes::copy_from_slice(&buffer[..length]);
        buffer.advance(length);
        Ok(Some(Datagram { from, to, payload }))
    }
}

fn put_address(out: &mut BytesMut, address: SocketAddr) {
    match address.ip() {
        IpAddr::V4(ip) => {
            out.put_u8(4);
            out.put_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.put_u8(6);
            out.put_slice(&ip.octets());
        }
    }
    out.put_u16(address.port());
}

fn take_address(front: &mut &[u8]) -> Result<Option<SocketAddr>, Garbled> {
    let bytes = match front.first() {
        None => return Ok(None),
        Some(4) => 4,
        Some(6) => 16,
        Some(_) => return Err(Garbled),
    };
    if front.len() < 1 + bytes + 2 {
        return Ok(None);
    }
    front.advance(1);
    let ip = if bytes == 4 {
        IpAddr::from(front.get_u32().to_be_bytes())
    } else {
        IpAddr::from(front.get_u128().to_be_bytes())
    };
    Ok(Some(SocketAddr::new(ip, front.get_u16())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opening_is_read_as_it_was_written() {
        let (from, to) = ("10.128.0.1:5".parse().unwrap(), "[fd00::1]:80".parse().unwrap());
        for client in [None, Some("203.0.113.7".parse().unwrap()), Some("2001:db8::1".parse().unwrap())] {
            let opened = Opening { from, to, client };
            assert_eq!(opening(tcp_request(&opened).unwrap().headers()), Some(opened));
        }
        let mut request = tcp_request(&Opening { from, to, client: None }).unwrap();
        request.headers_mut().insert(CLIENT, HeaderValue::from_static("nobody"));
        assert_eq!(opening(request.headers()).unwrap().client, None);
        request.headers_mut().remove(TO);
        assert_eq!(opening(request.headers()), None);
    }

    #[test]
    fn datagrams_survive_any_cut() {
        let sent = [
            Datagram {
                from: "10.128.0.1:5".parse().unwrap(),
                to: "10.128.1.1:53".parse().unwrap(),
                payload: Bytes::from_static(b"first"),
            },
            Datagram {
                from: "[fd00::1]:5".parse().unwrap(),
                to: "10.128.1.1:65535".parse().unwrap(),
                payload: Bytes::new(),
            },
        ];
        let whole: Vec<u8> = sent.iter().flat_map(|datagram| datagram.encode().to_vec()).collect();
        for cut in 0..=whole.len() {
            let mut buffer = BytesMut::new();
            let mut received = Vec::new();
            for piece in [&whole[..cut], &whole[cut..]] {
                buffer.extend_from_slice(piece);
                while let Some(datagram) = Datagram::decode(&mut buffer).unwrap() {
                    received.push(datagram);
                }
            }
            assert_eq!(received, sent);
        }
        assert!(Datagram::decode(&mut BytesMut::from(&[0, 1, 9][..])).is_err());
    }

    #[test]
    fn a_small_datagram_keeps_no_large_buffer() {
        let ends = ("10.128.0.1:5".parse().unwrap(), "10.128.1.1:53".parse().unwrap());
        let datagram = |bytes: usize| Datagram { from: ends.0, to: ends.1, payload: vec![7; bytes].into() };
        let mut buffer = BytesMut::with_capacity(100_000);
        for bytes in [60_000, 1] {
            buffer.extend_from_slice(&datagram(bytes).encode());
        }
        assert_eq!(Datagram::decode(&mut buffer).unwrap(), Some(datagram(60_000)));
        let small = Datagram::decode(&mut buffer).unwrap().unwrap();
        assert_eq!(small, datagram(1));
        assert!(small.payload.try_into_mut().expect("nobody else has it").capacity() < 1000);
    }

    #[test]
    fn refusals_keep_their_meaning() {
        for error in [
            NetError::ConnectionRefused,
            NetError::TimedOut,
            NetError::AccessDenied,
            NetError::HostUnreachable,
        ] {
            assert_eq!(refused(refusal(error).headers()), error);
        }
    }
}
