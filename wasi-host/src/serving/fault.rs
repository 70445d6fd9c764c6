//! Whose fault it was that a connection ended.

use std::error::Error;
use std::io;

/// What a client sent was no HTTP, or a flood: it, and not the network, ended the connection.
pub(super) fn is_clients(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            // What was told to the client as its fault (RFC 9113, 7), or a flood of what h2 answers without end.
            return error.is_go_away() && error.is_library() || error.get_io().is_some_and(is_flood);
        }
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
            return true;
        }
        if error.downcast_ref::<io::Error>().is_some_and(is_flood) {
            return true;
        }
        next = error.source();
    }
    false
}

/// What [`super::stream`] says of a flood.
fn is_flood(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
}
