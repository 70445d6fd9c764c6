//! The file descriptors of the process, shared out by what they are for.
//!
//! Whoever opens sockets because somebody else wants it takes them from here. The rest is left to what must not fail:
//! logs, volumes, artifacts, the link, and a control node in the same process.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::serving::{Places, WeakPlaces};

/// Descriptors that count where the system names no limit.
const UNLIMITED: u64 = 1 << 20;

/// How long a connection that has to make room may take to go.
const ROOM_TIMEOUT: Duration = Duration::from_millis(100);

/// What a descriptor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Clients of the gateway and of node ports: a half.
    Clients,
    /// Connections of pods to the outside: a quarter.
    Outside,
    /// Connections to the fabric's port, of whoever opens them: an eighth.
    Tunnels,
}

/// What is left of each share. Clones are the same.
#[derive(Clone)]
pub struct Descriptors {
    clients: Share,
    outside: Share,
    tunnels: Share,
}

#[derive(Clone)]
struct Share {
    size: usize,
    left: Arc<Semaphore>,
    /// The listeners that take from it, which can make room.
    listeners: Arc<Mutex<Vec<WeakPlaces>>>,
}

/// A descriptor's place in its share, until it is dropped.
#[derive(Debug)]
pub struct Descriptor {
    _permit: OwnedSemaphorePermit,
}

impl Descriptors {
    /// Shares of so many descriptors; `None` for no limit.
    pub fn within(open_files: Option<u64>) -> Descriptors {
        let all = usize::try_from(open_files.unwrap_or(UNLIMITED).min(UNLIMITED)).unwrap_or(usize::MAX);
        let share = |part: usize| {
            let size = (all / part).max(1);
            Share { size, left: Arc::new(Semaphore::new(size)), listeners: Arc::default() }
        };
        Descriptors { clients: share(2), outside: share(4), tunnels: share(8) }
    }

    /// Those of this process, by its limit at the first call. However many nodes it runs, they share them.
    pub fn of_process() -> Descriptors {
        static OF_PROCESS: LazyLock<Descriptors> = LazyLock::new(|| {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
            Descriptors::within(limit.current)
        });
        OF_PROCESS.clone()
    }

    /// One part of so many of those of this process, where it runs something else beside its nodes.
    pub fn part_of_process(parts: u64) -> Descriptors {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        Descriptors::within(limit.current.map(|files| files / parts.max(1)))
    }

    /// One more, where there is one.
    pub fn take(&self, purpose: Purpose) -> Option<Descriptor> {
        let left = Arc::clone(&self.share(purpose).left);
        left.try_acquire_owned().ok().map(|permit| Descriptor { _permit: permit })
    }

    /// One more for a connection that came in: where there is none, one that does nothing has to make room, of whatever
    /// listener with the purpose.
    pub async fn take_for_client(&self, purpose: Purpose) -> Option<Descriptor> {
        if let Some(descriptor) = self.take(purpose) {
            return Some(descriptor);
        }
        let share = self.share(purpose);
        let fullest = {
            let mut listeners = share.listeners.lock();
            listeners.retain(|listener| listener.upgrade().is_some());
            listeners.iter().filter_map(WeakPlaces::upgrade).max_by_key(Places::idle)
        };
        if !fullest.is_some_and(|places| places.make_room()) {
            return None;
        }
        let left = Arc::clone(&share.left).acquire_owned();
        let taken = tokio::time::timeout(ROOM_TIMEOUT, left).await;
        taken.ok()?.ok().map(|permit| Descriptor { _permit: permit })
    }

    /// Lets a listener's connections make room for each other's and for those of other listeners.
    pub fn join(&self, purpose: Purpose, places: &Places) {
        let mut listeners = self.share(purpose).listeners.lock();
        // Listeners come and go as services do, also where descriptors never run short.
        listeners.retain(|listener| listener.upgrade().is_some());
        listeners.push(places.downgrade());
    }

    /// Descriptors that are taken for a purpose.
    pub fn taken(&self, purpose: Purpose) -> usize {
        self.share(purpose).size.saturating_sub(self.share(purpose).left.available_permits())
    }

    /// Listeners that take from a purpose's share.
    pub fn listeners(&self, purpose: Purpose) -> usize {
        self.share(purpose).listeners.lock().iter().filter(|listener| listener.upgrade().is_some()).count()
    }

    /// How many there are in all for a purpose.
    pub fn size(&self, purpose: Purpose) -> usize {
        self.share(purpose).size
    }

    fn share(&self, purpose: Purpose) -> &Share {
        match purpose {
            Purpose::Clients => &self.clients,
            Purpose::Outside => &self.outside,
            Purpose::Tunnels => &self.tunnels,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_purpose_takes_what_another_needs() {
        let few = Descriptors::within(Some(8));
        let taken: Vec<Descriptor> = std::iter::from_fn(|| few.clone().take(Purpose::Clients)).collect();
        assert_eq!((taken.len(), few.size(Purpose::Clients)), (4, 4));
        let outside: Vec<Descriptor> = std::iter::from_fn(|| few.take(Purpose::Outside)).collect();
        assert_eq!(outside.len(), 2);
        assert!(few.take(Purpose::Tunnels).is_some());
        drop(taken);
        assert!(few.take(Purpose::Clients).is_some());
        assert!(Descriptors::within(None).size(Purpose::Tunnels) >= 1 << 16);
    }

    #[tokio::test]
    async fn a_connection_that_does_nothing_makes_room_for_one_that_comes() {
        let descriptors = Descriptors::within(Some(2));
        let places = Places::new(crate::serving::POD_PORT);
        descriptors.join(Purpose::Clients, &places);
        let held = descriptors.take(Purpose::Clients).expect("the only one");
        let place = places.enter([10, 0, 0, 1].into()).expect("room");
        let at_work = place.begin().expect("room");
        assert!(descriptors.take_for_client(Purpose::Clients).await.is_none(), "it is at work");
        drop(at_work);
        let idle = tokio::spawn(async move {
            place.lost().await;
            drop((held, place));
        });
        assert!(descriptors.take_for_client(Purpose::Clients).await.is_some());
        idle.await.expect("it made room");
    }

    #[test]
    fn listeners_that_are_gone_are_forgotten_however_many_there_were() {
        let bounds = crate::serving::POD_PORT;
        let descriptors = Descriptors::within(Some(800));
        let stays = Places::new(bounds);
        descriptors.join(Purpose::Clients, &stays);
        for _ in 0..1000 {
            descriptors.join(Purpose::Clients, &Places::new(bounds));
        }
        assert_eq!(descriptors.listeners(Purpose::Clients), 1);
        assert!(descriptors.clients.listeners.lock().len() <= 2);
    }
}
