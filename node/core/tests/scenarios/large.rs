//! What a pod's spec sizes costs time in proportion. Measured here and not in the crate, which knows no clock.
#![allow(clippy::disallowed_methods, reason = "the test measures; the core does not read the clock")]

use std::time::Instant;

use coracle_core::{env::arguments, spec::Container};

#[test]
fn references_without_an_end_are_read_once() {
    let open = "$(".repeat(400_000);
    let env = [("A".to_owned(), "1".to_owned())];
    // Quadratic, this takes many times as long as is allowed here; linear, a small part of that.
    let begun = Instant::now();
    for (given, expected) in [
        (open.clone(), open.clone()),
        (format!("{open})"), format!("{open})")),
        (format!("$(A){open}"), format!("1{open}")),
    ] {
        let container: Container =
            serde_json::from_str(&format!(r#"{{"image":"i","args":["{given}"]}}"#)).unwrap();
        let expanded = arguments(&container, &env).unwrap();
        assert!(expanded.last() == Some(&expected), "{} bytes", given.len());
    }
    assert!(begun.elapsed().as_secs() < 4, "{:?}", begun.elapsed());
}
