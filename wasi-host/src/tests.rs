//! Tests that run guests.
