//! Lines that begin with who wrote them.

/// Takes bytes as they come and gives out whole lines, each behind the prefix. Without one everything passes at once.
pub struct Prefixed {
    prefix: String,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
}

/// A line of which no end comes is given out in parts of this size.
const LINE_BYTES_MAX: usize = 64 << 10;

impl Prefixed {
    pub fn new(prefix: String) -> Self {
        Self { prefix, line: Vec::new() }
    }

    pub fn take(&mut self, chunk: &[u8]) -> Vec<u8> {
        if self.prefix.is_empty() {
            return chunk.to_vec();
        }
        let mut out = Vec::new();
        for part in chunk.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                self.give_out(&mut out);
            } else if self.line.len() > LINE_BYTES_MAX {
                self.line.push(b'\n');
                self.give_out(&mut out);
            }
        }
        out
    }

    /// What is left when nothing more comes.
    pub fn end(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.line.is_empty() {
            self.line.push(b'\n');
            self.give_out(&mut out);
        }
        out
    }

    fn give_out(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.prefix.as_bytes());
        out.append(&mut self.line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stay_whole_however_they_come() {
        let mut lines = Prefixed::new("[a] ".into());
        assert_eq!(lines.take(b"one\ntw"), b"[a] one\n");
        assert_eq!(lines.take(b"o\n\nthree"), b"[a] two\n[a] \n");
        assert_eq!(lines.end(), b"[a] three\n");
        assert_eq!(lines.end(), b"");
        assert_eq!(Prefixed::new(String::new()).take(b"tw"), b"tw", "what has no prefix does not wait");
        assert!(lines.take(&vec![b'x'; LINE_BYTES_MAX + 1]).ends_with(b"\n"), "no line is kept for ever");
    }
}
