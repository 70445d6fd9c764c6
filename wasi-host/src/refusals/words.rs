//! A refusal in words: what it is of, whose bound it was with its figures, and the mend.

use std::fmt;

use super::{Bound, Refused, Told, What};

impl What {
    /// In the words of who uses it.
    fn name(self) -> &'static str {
        match self {
            What::Memory => "memory",
            What::Heap => "the host's memory",
            What::Files => "open files",
            What::Disk => "disk",
            What::Instances => "instances",
            What::Sockets => "sockets",
            What::Streams => "connections to the pods of another node",
            What::Datagrams => "datagrams that wait for another node",
            What::Flows => "UDP flows to services",
            What::Outside => "open connections to beyond the cluster",
            What::OutsideDescriptors => "open files for connections to beyond the cluster",
            What::ClientDescriptors => "open files for clients",
            What::TunnelDescriptors => "open files for other nodes",
            What::Lookups => "lookups of names beyond the cluster",
            What::Calls => "file calls at once",
            What::WaitingCalls => "file calls that wait",
            What::Requests => "requests under way",
            What::GatewayRequests => "requests under way at the gateway",
            What::OutgoingRequests => "requests that it has sent and that are under way",
            What::LogBlocks => "log lines that wait for the disk",
            What::LogReaders => "logs that are read",
            What::Remembered => "remembered answers",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            What::Memory | What::Heap | What::Disk => " bytes",
            _ => "",
        }
    }

    /// What helps against a bound of the pod's own.
    fn own_mend(self, bound: Bound) -> &'static str {
        match (self, bound) {
            (What::Memory, _) => "raise resources.limits.memory",
            (What::Heap, _) => {
                "close connections, bodies and handles that are not needed, or raise resources.limits.memory, which this \
                 bound follows"
            }
            (What::Disk, Bound::Volume) => "remove files, or raise the volume's sizeLimit",
            (What::Disk, _) => "remove files, or raise resources.limits.ephemeral-storage",
            (What::Files, _) => "close some of them",
            (What::Sockets, _) => "close some of them, or add replicas",
            (What::Requests | What::Instances, _) => "add replicas, or answer sooner",
            (What::WaitingCalls, _) => "wait for some of them before more are made",
            _ => "wait until some of them are done, or add replicas",
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refused { what, bound, held, asked, limit, all } = *self;
        let unit = what.unit();
        write!(f, "{}: ", what.name())?;
        match bound {
            Bound::Volume => write!(f, "the volume holds {held} of the {limit}{unit} that it may")?,
            Bound::Container => write!(f, "the container holds {held} of the {limit}{unit} that it may")?,
            Bound::Pod => write!(f, "the pod holds {held} of the {limit}{unit} that it may")?,
            Bound::PodShare => write!(
                f,
                "the pod holds {held} of this node's {all}{unit} and may hold {limit} by what is free of them now"
            )?,
            Bound::Namespace => write!(
                f,
                "the namespace holds {held} of this node's {all}{unit} and may hold {limit} by what is free of them now"
            )?,
            Bound::Caller => write!(
                f,
                "the caller, or the pods of its namespace, hold {held} of {all}{unit} and may hold {limit} now"
            )?,
            Bound::Port => write!(f, "all callers of this port hold {held} of its {limit}{unit}")?,
            Bound::Node => write!(f, "all pods of this node hold {held} of the {limit}{unit} that they may")?,
        }
        match what {
            What::Instances if asked > 1 => {
                write!(f, ", and one of this component counts as {asked}, for its memories and tables")?;
            }
            _ if asked > 1 => write!(f, ", and {asked} more were asked for")?,
            _ => {}
        }
        f.write_str("; ")?;
        f.write_str(self.mend())
    }
}

impl Refused {
    /// What it is about without the figures of the moment: the same each time, so that an event of it counts up.
    pub fn lasting_words(&self) -> String {
        let Refused { what, bound, limit, all, .. } = *self;
        let (name, unit, mend) = (what.name(), what.unit(), self.mend());
        let whose = match bound {
            Bound::Volume => format!("the volume holds the {limit}{unit} that it may"),
            Bound::Container => format!("the container holds the {limit}{unit} that it may"),
            Bound::Pod => format!("the pod holds the {limit}{unit} that it may"),
            Bound::PodShare => {
                format!("the pod holds as many of this node's {all}{unit} as it may while others hold theirs")
            }
            Bound::Namespace => {
                format!(
                    "the namespace holds as many of this node's {all}{unit} as it may while others hold theirs"
                )
            }
            Bound::Caller => {
                format!("the caller, or the pods of its namespace, hold as many of {all}{unit} as they may")
            }
            Bound::Port => format!("all callers of this port hold its {limit}{unit}"),
            Bound::Node => format!("all pods of this node hold the {limit}{unit} that they may"),
        };
        format!("{name}: {whose}; {mend}")
    }

    fn mend(&self) -> &'static str {
        match (self.bound, self.what) {
            (Bound::Volume | Bound::Container | Bound::Pod, what) => what.own_mend(self.bound),
            (Bound::PodShare | Bound::Namespace | Bound::Node, What::Memory) => {
                "what resources.requests.memory asks for is kept for a pod"
            }
            (Bound::Namespace, What::Instances) => "stop some of the namespace's pods, or add a node",
            (Bound::Node, What::Instances) => "it goes on when other instances end; or add a node",
            (Bound::PodShare, What::Instances) => "spread its containers over several pods",
            (Bound::PodShare, _) => "spread what it does over several pods",
            (Bound::Namespace, _) => "have the namespace's other pods hold less, or add a node",
            (Bound::Caller | Bound::Port, _) => "ask again when some of them are done",
            (Bound::Node, _) => "try again when others have given some back, or add a node",
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.refused.fmt(f)?;
        match self.untold {
            0 => Ok(()),
            untold => write!(f, " ({untold} times more since this was said last)"),
        }
    }
}
