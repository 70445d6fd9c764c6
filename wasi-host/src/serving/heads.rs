//! Where the heads of HTTP/1.1 requests begin and end in what a client sends (RFC 9112), to know how much there is of one that
//! is not whole. Whether any of it is valid is not looked at here: what this cannot follow the server refuses.

/// Bytes of a line that are looked at: enough for the fields that say how long a body is.
const LINE_BYTES_KEPT: usize = 128;

/// Follows the messages of one connection.
#[derive(Default)]
pub(super) struct Messages {
    part: Part,
    /// The line that has begun, as much of it as is looked at.
    line: Vec<u8>,
    /// Of a head that is not whole.
    head_bytes: usize,
    /// It has a line already; empty ones before it are none of it.
    has_begun: bool,
    length: u64,
    is_chunked: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Head,
    /// So many bytes are left of it.
    Body(u64),
    ChunkSize,
    /// So many bytes are left, with the line's end.
    Chunk(u64),
    Trailers,
    /// It is no HTTP/1.1.
    Unknown,
}

impl Messages {
    /// Takes note of bytes from the client.
    pub(super) fn received(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = match self.part {
                Part::Unknown => bytes.len(),
                Part::Body(left) | Part::Chunk(left) => self.skip(left, bytes.len()),
                Part::Head | Part::ChunkSize | Part::Trailers => self.read_line(bytes),
            };
            bytes = &bytes[taken..];
        }
    }

    /// Bytes of a head that is not whole.
    pub(super) fn head_bytes(&self) -> usize {
        self.head_bytes
    }

    /// Whether a body has begun that is not whole.
    pub(super) fn is_in_body(&self) -> bool {
        !matches!(self.part, Part::Head | Part::Unknown)
    }

    fn skip(&mut self, left: u64, there: usize) -> usize {
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(there);
        let left = left - taken as u64;
        self.part = match self.part {
            Part::Body(_) if left == 0 => Part::Head,
            Part::Body(_) => Part::Body(left),
            _ if left == 0 => Part::ChunkSize,
            _ => Part::Chunk(left),
        };
        taken
    }

    fn read_line(&mut self, bytes: &[u8]) -> usize {
        let end = memchr::memchr(b'\n', bytes);
        let taken = end.map_or(bytes.len(), |end| end + 1);
        if self.part == Part::Head {
            self.head_bytes += taken;
        }
        match end {
            // The usual case: it is here as a whole.
            Some(end) if self.line.is_empty() => {
                self.end_line(bytes[..end.min(LINE_BYTES_KEPT)].trim_ascii())
            }
            _ => {
                let kept = taken.min(LINE_BYTES_KEPT - self.line.len());
                self.line.extend_from_slice(&bytes[..kept]);
                if end.is_some() {
                    let line = std::mem::take(&mut self.line);
                    self.end_line(line.trim_ascii());
                    self.line = line;
                    self.line.clear();
                }
            }
        }
        taken
    }

    fn end_line(&mut self, line: &[u8]) {
        match self.part {
            Part::Head if line.is_empty() => self.end_head(),
            Part::Head => {
                self.has_begun = true;
                self.read_field(line);
            }
            Part::ChunkSize => {
                let size = line.split(|byte| *byte == b';').next().unwrap_or_default();
                let size = std::str::from_utf8(size.trim_ascii()).ok();
                self.part = match size.and_then(|size| u64::from_str_radix(size, 16).ok()) {
                    Some(0) => Part::Trailers,
                    Some(size) => Part::Chunk(size.saturating_add(2)),
                    None => Part::Unknown,
                };
            }
            Part::Trailers if line.is_empty() => self.part = Part::Head,
            _ => {}
        }
    }

    fn end_head(&mut self) {
        let (length, is_chunked) = (std::mem::take(&mut self.length), std::mem::take(&mut self.is_chunked));
        self.head_bytes = 0;
        if std::mem::take(&mut self.has_begun) {
            self.part = match length {
                _ if is_chunked => Part::ChunkSize,
                0 => Part::Head,
                length => Part::Body(length),
            };
        }
    }

    fn read_field(&mut self, line: &[u8]) {
        if !matches!(line.first(), Some(b'c' | b'C' | b't' | b'T')) {
            return;
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return };
        let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.is_chunked = true;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let length = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
            self.length = length.unwrap_or(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of a head after these bytes, however they are cut.
    fn left(bytes: &str) -> usize {
        let of = |piece: usize| {
            let mut messages = Messages::default();
            bytes.as_bytes().chunks(piece).for_each(|piece| messages.received(piece));
            messages.head_bytes()
        };
        let all: Vec<usize> = [1, 2, 3, 7, 4096].map(of).into();
        assert!(all.iter().all(|one| one == &all[0]), "{bytes:?}: {all:?}");
        all[0]
    }

    #[test]
    fn heads_are_told_from_bodies() {
        let get = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        let part = "GET /next";
        assert_eq!(left(""), 0);
        assert_eq!(left(part), part.len());
        assert_eq!(left(get), 0);
        assert_eq!(left(&[get, get, part].concat()), part.len());
        let sized = "POST / HTTP/1.1\r\nhost: a\r\nContent-Length : 5\r\n\r\n";
        assert_eq!(left(sized), 0);
        assert_eq!(left(&[sized, "a\n\r\n"].concat()), 0, "a part of the body");
        assert_eq!(left(&[sized, "a\n\r\nb", part].concat()), part.len());
        let chunked = "POST / HTTP/1.1\nTRANSFER-encoding: gzip, chunked\ncontent-length: 3\n\n";
        let chunks = "5;x=y\r\n\r\n\r\n\r\r\nA\r\n0123456789\r\n";
        assert_eq!(left(&[chunked, chunks].concat()), 0);
        assert_eq!(left(&[chunked, chunks, "0\r\n\r\n", part].concat()), part.len());
        assert_eq!(left(&[chunked, chunks, "0\r\nx: y\r\n\r\n", get, part].concat()), part.len());
        assert_eq!(left(&["\r\n\r\n", get, "\r\n", part].concat()), part.len(), "empty lines are none of it");
        assert_eq!(left(&[chunked, "none\r\n", part].concat()), 0, "nobody knows");
        let long = format!("GET / HTTP/1.1\r\nx: {}\r\ncontent-length: 3\r\n", "y".repeat(1000));
        assert_eq!(left(&long), long.len());
        assert_eq!(left(&[&long, "\r\nabc", part].concat()), part.len());
    }
}
