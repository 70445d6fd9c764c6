//! How the leader's planners fare.

use std::sync::atomic::Ordering;

use super::text::Text;
use crate::planning::Planning;

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
    let help = "Tasks of controllers that were lately refused, failed, or undone by others: they wait longer each time.";
    text.gauge("coracle_planning_tasks_in_trouble", help).is(controllers.in_trouble.load(Ordering::Relaxed));
    let help = "Objects that the controllers cannot read; events name them.";
    text.gauge("coracle_planning_objects_unreadable", help)
        .is(controllers.unreadable.load(Ordering::Relaxed));
    text.counter("coracle_planning_panics_total", "Tasks of controllers that panicked, by a fault of ours.")
        .is(controllers.panics.load(Ordering::Relaxed));
}
