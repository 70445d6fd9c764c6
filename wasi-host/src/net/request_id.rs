//! What a request is called where it has no answer of a guest's.
//!
//! Nobody makes a name, or sends one on, for a request that is answered: it is made where the first of the gateway and the
//! host's own parts has no answer, goes back with what stands for one, and along with the request where that is tried elsewhere.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};

/// Where a request and an answer say what the request is called.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Bytes of a name that a request may come with.
pub const REQUEST_ID_BYTES_MAX: usize = 64;

/// What a request is called, where somebody is to find it in a log: as it came, where that is fit to stand in a line of text
/// (at most [`REQUEST_ID_BYTES_MAX`] letters, digits and `-_.:+/=@`), or by a name made for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RequestId(Name);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Name {
    Made(u64),
    /// The bytes, and how many of them count.
    Given([u8; REQUEST_ID_BYTES_MAX], u8),
}

impl RequestId {
    /// What a message calls its request; else another name than any before, as far as chance goes.
    pub fn of(headers: &HeaderMap) -> RequestId {
        RequestId::given(headers).unwrap_or_else(RequestId::random)
    }

    /// What a message calls its request. One that has two names, or one that is not fit, has none.
    pub fn given(headers: &HeaderMap) -> Option<RequestId> {
        let mut names = headers.get_all(REQUEST_ID).iter();
        let name = names.next().filter(|name| is_fit(name.as_bytes()))?;
        if names.next().is_some() {
            return None;
        }
        let mut bytes = [0; REQUEST_ID_BYTES_MAX];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Some(RequestId(Name::Given(bytes, u8::try_from(name.len()).ok()?)))
    }

    /// Another name than any before, as far as chance goes.
    pub fn random() -> RequestId {
        RequestId(Name::Made(rand::random()))
    }

    /// Says it in a message.
    pub fn write_to(self, headers: &mut HeaderMap) {
        if let Ok(name) = HeaderValue::try_from(self.to_string()) {
            headers.insert(REQUEST_ID, name);
        }
    }
}

fn is_fit(name: &[u8]) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:+/=@".contains(byte);
    (1..=REQUEST_ID_BYTES_MAX).contains(&name.len()) && name.iter().all(is_plain)
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Name::Made(number) => write!(f, "{number:016x}"),
            Name::Given(bytes, length) => {
                f.write_str(&String::from_utf8_lossy(&bytes[..usize::from(*length)]))
            }
        }
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(names: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for name in names {
            headers.append(REQUEST_ID, HeaderValue::from_str(name).unwrap());
        }
        RequestId::given(&headers).map(|id| id.to_string())
    }

    #[test]
    fn a_request_is_called_what_it_came_with_where_that_is_fit_for_a_log() {
        let longest = "x".repeat(REQUEST_ID_BYTES_MAX);
        for fit in ["7d444840-9dc0-11d1-b245-5ffdce74fad2", "a", "A_b.c:d+e/f=@", &longest] {
            assert_eq!(given(&[fit]).as_deref(), Some(fit));
        }
        let too_long = "x".repeat(REQUEST_ID_BYTES_MAX + 1);
        for unfit in ["", &too_long, "a b", "a\tb", "a\"", "<a>", "a;b", "a,b"] {
            assert_eq!(given(&[unfit]), None, "{unfit:?}");
        }
        assert_eq!((given(&[]), given(&["a", "a"])), (None, None));
    }

    #[test]
    fn a_name_that_was_made_is_the_same_where_it_arrives() {
        let (id, mut headers) = (RequestId::random(), HeaderMap::new());
        id.write_to(&mut headers);
        assert_eq!(RequestId::of(&headers).to_string(), id.to_string());
        assert_eq!(id.to_string().len(), 16);
    }
}
