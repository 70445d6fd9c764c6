//! Two nodes in one process, with real tunnels between them.

mod answers;
mod clients;
mod cluster;
mod cut;
mod decisions;
mod functions;
mod gateway;
mod held;
mod log;
mod names;
mod outside;
mod page;
mod peers;
mod services;
mod sources;
mod tunnels;
mod windows;
