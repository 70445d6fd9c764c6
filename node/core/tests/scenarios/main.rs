//! Golden transcripts: scripted lives of pods, every action in order. `UPDATE_EXPECT=1` rewrites them.

mod evictions;
mod images;
mod large;
mod lives;
mod nodes;
mod seats;
mod sources;
mod world;
