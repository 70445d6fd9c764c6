//! What client commands read: files that a user names. One may be endless, or a mistake: nothing is read beyond its bound.

use std::{fs::File, io::Read, path::Path};

use anyhow::{Context, Result, bail};

/// The content of a file.
pub fn bytes(file: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    let reading = || format!("reading {}", file.display());
    whole(File::open(file).with_context(reading)?, bytes_max).with_context(reading)
}

/// The same of a text; `-` is stdin.
pub fn text(file: &Path, bytes_max: u64) -> Result<String> {
    let bytes = match file == Path::new("-") {
        true => stdin(bytes_max)?,
        false => bytes(file, bytes_max)?,
    };
    String::from_utf8(bytes).with_context(|| format!("reading {}: it is no text in UTF-8", file.display()))
}

/// All of stdin.
pub fn stdin(bytes_max: u64) -> Result<Vec<u8>> {
    whole(std::io::stdin(), bytes_max).context("reading stdin")
}

fn whole(source: impl Read, bytes_max: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        let most = if bytes_max < 1 << 20 { (bytes_max >> 10, "KiB") } else { (bytes_max >> 20, "MiB") };
        bail!("it is larger than {} {}, which such a file may have at most", most.0, most.1);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_larger_than_its_bound_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        for (size, fits) in [(1 << 20, true), ((1 << 20) + 1, false)] {
            std::fs::write(&file, vec![b'a'; size]).unwrap();
            assert_eq!(text(&file, 1 << 20).is_ok(), fits, "{size}");
        }
        let said = format!("{:#}", bytes(Path::new("/dev/zero"), 1 << 20).unwrap_err());
        assert!(said.starts_with("reading /dev/zero: it is larger than 1 MiB"), "{said}");
        std::fs::write(&file, b"\xff").unwrap();
        let said = format!("{:#}", text(&file, 1 << 20).unwrap_err());
        assert!(said.contains("it is no text in UTF-8"), "{said}");
        assert!(bytes(&folder.path().join("none"), 1).is_err());
    }
}
