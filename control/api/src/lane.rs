//! So many at once and no more, and no user more than their share: whoever asks for too much waits behind himself.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::ApiError;

/// How long a request waits for its turn before it is told to come again.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Users that are remembered while nothing of theirs is under way.
const IDLE_USERS_MAX: usize = 1024;

/// A number of turns that users share.
pub struct Lane {
    turns: Arc<Semaphore>,
    /// Of one user at once.
    share: usize,
    /// Of one user, those that wait among them.
    present_max: usize,
    users: Mutex<HashMap<String, User>>,
}

#[derive(Clone)]
struct User {
    turns: Arc<Semaphore>,
    /// One part for each request that is present.
    present: Arc<()>,
}

/// One turn; over when it is dropped.
pub struct Turn {
    _present: Arc<()>,
    _own: OwnedSemaphorePermit,
    _shared: OwnedSemaphorePermit,
}

impl Lane {
    /// `turns` at once, of one user `share`; `present_max` of one user may be there, under way or waiting.
    pub fn new(turns: usize, share: usize, present_max: usize) -> Self {
        Self { turns: Arc::new(Semaphore::new(turns)), share, present_max, users: Mutex::default() }
    }

    /// Waits for a turn. Refused with 429 where too many of the user wait, or none comes in time.
    pub async fn enter(&self, user: &str) -> Result<Turn, ApiError> {
        let (own, present) = self.arrive(user).ok_or(ApiError::TooManyRequests)?;
        let both = async {
            // His own first: what waits behind his own is in nobody's way.
            let own = own.acquire_owned().await.ok()?;
            Some((own, self.turns.clone().acquire_owned().await.ok()?))
        };
        match tokio::time::timeout(WAIT_MAX, both).await {
            Ok(Some((own, shared))) => Ok(Turn { _present: present, _own: own, _shared: shared }),
            _ => Err(ApiError::TooManyRequests),
        }
    }

    /// Waits for a turn as long as it takes, for what is bounded otherwise. None where there are no turns any more.
    pub async fn wait(&self, user: &str) -> Option<Turn> {
        let (own, present) = self.user(user);
        let own = own.acquire_owned().await.ok()?;
        let shared = self.turns.clone().acquire_owned().await.ok()?;
        Some(Turn { _present: present, _own: own, _shared: shared })
    }

    fn arrive(&self, name: &str) -> Option<(Arc<Semaphore>, Arc<()>)> {
        let (turns, present) = self.user(name);
        // The map has one part itself, and this is another.
        (Arc::strong_count(&present) - 2 < self.present_max).then_some((turns, present))
    }

    fn user(&self, name: &str) -> (Arc<Semaphore>, Arc<()>) {
        let mut users = self.users.lock();
        if !users.contains_key(name) {
            if users.len() >= IDLE_USERS_MAX {
                users.retain(|_, user| Arc::strong_count(&user.present) > 1);
            }
            let user = User { turns: Arc::new(Semaphore::new(self.share)), present: Arc::default() };
            users.insert(name.to_owned(), user);
        }
        let user = &users[name];
        (user.turns.clone(), user.present.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_user_waits_behind_himself_and_others_do_not() {
        let lane = Lane::new(3, 2, 4);
        let first = lane.enter("greedy").await.unwrap();
        let _second = lane.enter("greedy").await.unwrap();
        let began = tokio::time::Instant::now();
        assert!(matches!(lane.enter("greedy").await, Err(ApiError::TooManyRequests)));
        assert_eq!(began.elapsed(), WAIT_MAX);
        let _other = tokio::time::timeout(Duration::ZERO, lane.enter("other")).await.unwrap().unwrap();
        let waiting = lane.enter("greedy");
        drop(first);
        waiting.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_wait_are_bounded_and_forgotten() {
        let lane = Lane::new(1, 1, 3);
        let turn = lane.enter("a").await.unwrap();
        let (one, two) = (lane.enter("a"), lane.enter("a"));
        let third = async {
            let began = tokio::time::Instant::now();
            assert!(lane.enter("a").await.is_err());
            assert_eq!(began.elapsed(), Duration::ZERO, "there is no room to wait");
        };
        let (one, two, ()) = tokio::join!(one, two, third);
        assert!(one.is_err() && two.is_err());
        drop(turn);
        for user in 0..2 * IDLE_USERS_MAX {
            lane.enter(&user.to_string()).await.unwrap();
        }
        assert!(lane.users.lock().len() <= IDLE_USERS_MAX);
    }
}
