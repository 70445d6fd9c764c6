//! What a service manager is told: systemd's `sd_notify(3)`. Nothing where none listens.

use sd_notify::NotifyState;

/// The command does its work now: what waits for the service goes on.
pub fn ready() {
    tell(NotifyState::Ready);
}

/// The command was asked to end, and may take a while.
pub fn stopping() {
    tell(NotifyState::Stopping);
}

fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager is not told");
    }
}
