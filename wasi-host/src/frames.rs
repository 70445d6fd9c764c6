//! What of a guest's backtrace is told: the program's own functions first, and not how its language panics.

use std::fmt::{self, Write};

/// Frames that are named.
const FRAMES_MAX: usize = 8;

/// Bytes of a name that are told. A mangled name can stand for far more than it is long: its parts refer to each other.
const NAME_BYTES_MAX: usize = 384;

/// How languages end a program that has gone wrong, from within: by how the names of those functions begin.
const PANICS: &[&str] = &[
    // Rust
    "rust_panic",
    "rust_begin_unwind",
    "__rust_",
    "__rustc",
    "core::panicking::",
    "core::cell::panic_",
    "core::option::expect_failed",
    "core::option::unwrap_failed",
    "core::result::unwrap_failed",
    "core::slice::index::slice_",
    "core::str::slice_error_fail",
    "std::panicking::",
    "std::panic::",
    "std::process::abort",
    "std::process::exit",
    "std::alloc::rust_oom",
    "std::alloc::handle_alloc_error",
    "alloc::alloc::handle_alloc_error",
    "alloc::raw_vec::handle_error",
    "alloc::raw_vec::capacity_overflow",
    "panic_unwind::",
    "panic_abort::",
    // C++
    "std::terminate",
    "std::__terminate",
    "std::__1::__libcpp_verbose_abort",
    "__cxa_",
    "demangling_terminate_handler",
    // Go and TinyGo
    "runtime.abort",
    "runtime.crash",
    "runtime.dopanic",
    "runtime.exit",
    "runtime.fatal",
    "runtime.gopanic",
    "runtime.goPanic",
    "runtime.panic",
    "runtime.sigpanic",
    "runtime.throw",
    "runtime._panic",
    "runtime.lookupPanic",
    "runtime.nilPanic",
    "runtime.runtimePanic",
];

/// The same of C, by their whole names: a program's own may begin alike.
const ENDS: &[&str] = &["abort", "__abort", "raise", "__assert_fail", "__assert_rtn", "__stack_chk_fail"];

/// Names of libraries that come with a language.
const LIBRARIES: &[&str] =
    &["core::", "std::", "alloc::", "compiler_builtins::", "hashbrown::", "runtime.", "__libc_"];

/// The frames, innermost first, as lines that name at most a few. What lies within the program's innermost own function is
/// left out where it is how a panic goes on, or a library's.
pub(crate) fn told<'a>(frames: impl Iterator<Item = (Option<&'a str>, u32)>) -> String {
    let names: Vec<String> = frames.map(|(name, index)| readable(name, index)).collect();
    let is_one_of = |name: &str, known: &[&str]| known.iter().any(|begin| bare(name).starts_with(begin));
    let is_panic = |name: &str| is_one_of(name, PANICS) || ENDS.contains(&name);
    let own = names.iter().position(|name| !is_panic(name) && !is_one_of(name, LIBRARIES));
    // A program that is all library, or has no names, tells what it can.
    let first = own.or_else(|| names.iter().position(|name| !is_panic(name))).unwrap_or(0);
    let mut text = String::new();
    for name in names.iter().skip(first).take(FRAMES_MAX) {
        text.push_str("\n    at ");
        text.push_str(name);
    }
    let hidden = names.len().saturating_sub(first + FRAMES_MAX);
    if hidden > 0 {
        text.push_str(&format!("\n    and {hidden} more"));
    }
    text
}

/// A function's name as its programmer wrote it, or the beginning of it.
fn readable(name: Option<&str>, index: u32) -> String {
    let Some(name) = name else { return format!("function {index}") };
    let mut told = Beginning(String::new());
    // An error is the end of the room.
    let _ = match rustc_demangle::try_demangle(name) {
        Ok(demangled) => write!(told, "{demangled:#}"),
        Err(_) => told.write_str(without_hash(name)),
    };
    told.0
}

/// Takes as much of a text as is told, and asks for no more.
struct Beginning(String);

impl Write for Beginning {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        let room = NAME_BYTES_MAX.saturating_sub(self.0.len());
        if piece.len() <= room {
            self.0.push_str(piece);
            return Ok(());
        }
        self.0.push_str(&piece[..piece.floor_char_boundary(room)]);
        self.0.push_str(" ...");
        Err(fmt::Error)
    }
}

/// Rust's names are in their readable form already where the linker has written them, but for their hash.
fn without_hash(name: &str) -> &str {
    match name.rsplit_once("::h") {
        Some((path, hash)) if hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => path,
        _ => name,
    }
}

/// A method's name from its type on: `<core::cell::Cell<T>>::get` is of `core::`.
fn bare(name: &str) -> &str {
    name.trim_start_matches(['<', '&', '*', '('])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[&str]) -> String {
        told(names.iter().map(|name| (Some(*name), 0)))
    }

    #[test]
    fn a_programs_own_functions_come_first() {
        let rust = [
            "std::process::abort::h0123456789abcdef",
            "__rust_abort",
            "_RNvCsjKrBLhZZb7F_7___rustc18___rust_start_panic",
            "rust_panic",
            "std::panicking::rust_panic_with_hook::hfedcba9876543210",
            "core::panicking::panic_fmt::h0123456789abcdef",
            "core::option::Option<T>::unwrap::h0123456789abcdef",
            "shop::cart::total::h0123456789abcdef",
            "shop::main::h0123456789abcdef",
            "std::rt::lang_start::h0123456789abcdef",
            "__main_void",
        ];
        let told = of(&rust);
        assert_eq!(
            told,
            "\n    at shop::cart::total\n    at shop::main\n    at std::rt::lang_start\n    at __main_void"
        );
        assert_eq!(
            of(&["abort", "__assert_fail", "abort_order", "main"]),
            "\n    at abort_order\n    at main"
        );
        let go = ["runtime.abort", "runtime.fatalpanic", "runtime.gopanic", "main.total", "main.main"];
        assert_eq!(of(&go), "\n    at main.total\n    at main.main");
    }

    #[test]
    fn names_are_read_as_they_were_written() {
        assert_eq!(of(&["_ZN4shop4cart5total17h0123456789abcdefE"]), "\n    at shop::cart::total");
        assert_eq!(of(&["_RNvNtCs1234_4shop4cart5total"]), "\n    at shop::cart::total");
        assert_eq!(of(&["operator new(unsigned long)"]), "\n    at operator new(unsigned long)");
        assert_eq!(told([(None, 7)].into_iter()), "\n    at function 7");
    }

    #[test]
    fn of_a_name_that_grows_as_it_is_read_the_beginning_is_told() {
        // A function with type parameters that are ten times the one before each, by reference: 10^8 numbers in 300 bytes.
        let mut name = "_RINvC1a1f".to_owned();
        let mut part = "j".to_owned();
        for _ in 0..8 {
            // Where it stands, counted from behind the prefix, as a number to the base of 62.
            let at = name.len() - "_R".len() - 1;
            let digit = |digit: usize| {
                char::from_digit(digit as u32, 36).unwrap_or_else(|| (b'A' + (digit - 36) as u8).into())
            };
            name += &format!("T{}E", part.repeat(10));
            part = format!("B{}{}_", digit(at / 62), digit(at % 62));
        }
        name += "E";
        let told = of(&[&name]);
        assert!(told.starts_with("\n    at a::f::<(usize, usize, ") && told.ends_with(" ..."), "{told}");
        assert!(told.len() < NAME_BYTES_MAX + 20, "{}", told.len());
        let long = "a".repeat(10_000);
        assert_eq!(of(&[&long]).len(), "\n    at  ...".len() + NAME_BYTES_MAX);
    }

    #[test]
    fn something_is_told_of_every_trap() {
        assert_eq!(of(&["abort"]), "\n    at abort");
        assert_eq!(of(&["rust_panic", "core::panicking::panic", "std::io::read"]), "\n    at std::io::read");
        assert_eq!(of(&[]), "");
        let deep: Vec<_> = (0..20).map(|_| "deep").collect();
        assert!(of(&deep).ends_with("\n    and 12 more"), "{}", of(&deep));
    }
}
