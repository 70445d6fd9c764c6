//! The generated traits called as a guest would call them, and guests themselves.

mod guests;
mod handles;
