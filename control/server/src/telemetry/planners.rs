//! How the leader's planners fare.

use std::sync::atomic::Ordering;

use coracle_proto::metrics::Text;

use crate::planning::{Planner, Planning};

pub fn write(text: &mut Text, planning: &Planning) {
    let both = [("controllers", &planning.controllers), ("scheduler", &planning.scheduler)];
    let help = "How long there has been work that a planner of the leader has not looked at.";
    let mut family = text.gauge("coracle_planning_lag_seconds", help);
    for (name, planner) in both {
        family.with(&[("planner", name)], planner.lag().as_secs_f64());
    }
    let controllers = &planning.controllers;
    text.gauge("coracle_planning_tasks_waiting", "Tasks of controllers that wait to be looked at.")
        .is(controllers.waiting.load(Ordering::Relaxed));
    let all = |of: fn(&Planner) -> usize| both.iter().map(move |(_, planner)| of(planner));
    let help = "What was lately refused, failed, or undone by others, and waits longer each time: tasks of controllers, and \
                pods that the scheduler leaves.";
    let in_trouble = all(|planner| planner.in_trouble.load(Ordering::Relaxed));
    text.gauge("coracle_planning_tasks_in_trouble", help).is(in_trouble.sum::<usize>());
    let help = "Tasks of controllers that their own writes wake again and again, and that wait longer each time; events name \
                their objects.";
    let restless = controllers.restless.load(Ordering::Relaxed);
    text.gauge("coracle_planning_tasks_restless", help).is(restless);
    let help = "Objects that a planner cannot read; events name them.";
    // Most of them neither can read.
    let unreadable = all(|planner| planner.unreadable.load(Ordering::Relaxed));
    text.gauge("coracle_planning_objects_unreadable", help).is(unreadable.max().unwrap_or(0));
    let help = "What a planner remembers beside the objects, as of its last plan: tasks, flights, backoffs, placements.";
    let mut family = text.gauge("coracle_planning_remembered", help);
    for (name, planner) in both {
        family.with(&[("planner", name)], planner.remembered.load(Ordering::Relaxed));
    }
    let panics = both.iter().map(|(_, planner)| planner.panics.load(Ordering::Relaxed));
    text.counter(
        "coracle_planning_panics_total",
        "Panics of planners over one task or pod, by faults of ours.",
    )
    .is(panics.sum::<u64>());
}
