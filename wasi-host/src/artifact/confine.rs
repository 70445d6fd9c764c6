//! What a process that reads bytes of strangers cannot do, taken over or not: the kernel's part.
//!
//! Landlock takes the file system, seccomp all system calls but those that computing needs. Each is in force where the
//! kernel has it; where it has not, the rest still holds.

use std::collections::BTreeMap;
use std::fmt;

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetStatus, Scope};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

/// What is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confinement {
    /// No file can be opened.
    pub landlock: bool,
    /// No system call but a few.
    pub seccomp: bool,
}

impl Confinement {
    /// What this kernel confines the compiler of components with, tried on a thread that ends.
    pub fn of_this_kernel() -> Confinement {
        let tried = std::thread::spawn(|| Confinement {
            landlock: without_files(),
            seccomp: filter().is_some_and(|filter| seccompiler::apply_filter(&filter).is_ok()),
        });
        tried.join().unwrap_or(Confinement { landlock: false, seccomp: false })
    }

    /// Nothing is missing.
    pub fn is_whole(self) -> bool {
        self.landlock && self.seccomp
    }
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.landlock, self.seccomp) {
            (true, true) => "Landlock and seccomp",
            (true, false) => "Landlock, but not seccomp",
            (false, true) => "seccomp, but not Landlock",
            (false, false) => "neither Landlock nor seccomp",
        })
    }
}

/// Takes the file system and the network from this thread and those that it starts. False where the kernel cannot.
pub(super) fn without_files() -> bool {
    // Rights that this kernel does not know are left out.
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(ABI::V5)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(ABI::V6)))
        .and_then(Ruleset::create);
    let status = ruleset.and_then(landlock::RulesetCreated::restrict_self);
    status.is_ok_and(|status| status.ruleset != RulesetStatus::NotEnforced)
}

/// Leaves all threads of this process the system calls that computing needs. False where the kernel cannot.
pub(super) fn only_compute() -> bool {
    filter().is_some_and(|filter| seccompiler::apply_filter_all_threads(&filter).is_ok())
}

/// What compiling needs beside computing: memory that cannot be executed, its open files, and its own threads, which
/// are there already. Everything else is not permitted, which a library survives that only tries.
const CALLS: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
];

fn filter() -> Option<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = CALLS.iter().map(|call| (*call, Vec::new())).collect();
    let executable = u64::from(libc::PROT_EXEC.cast_unsigned());
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![only_where(2, SeccompCmpOp::MaskedEq(executable), 0)?]);
    }
    // How a process ends itself, and no other.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![only_where(0, SeccompCmpOp::Eq, own)?]);
    let otherwise = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let arch = TargetArch::try_from(std::env::consts::ARCH).ok()?;
    SeccompFilter::new(rules, otherwise, SeccompAction::Allow, arch).ok()?.try_into().ok()
}

fn only_where(argument: u8, operator: SeccompCmpOp, value: u64) -> Option<SeccompRule> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value).ok()?;
    SeccompRule::new(vec![condition]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    /// Runs `work` on a thread of its own: what is taken from it stays taken.
    fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(work).join().expect("no panic")
    }

    #[test]
    fn landlock_takes_all_files_where_the_kernel_has_it() {
        let (own, opened) = apart(|| {
            let (enforced, path) = (without_files(), std::env::current_exe().expect("a path"));
            (enforced, std::fs::File::open(path).map(drop).map_err(|error| error.kind()))
        });
        assert_eq!(own, Confinement::of_this_kernel().landlock);
        assert_eq!(opened, if own { Err(ErrorKind::PermissionDenied) } else { Ok(()) });
    }

    #[test]
    fn seccomp_takes_sockets_programs_threads_and_code_but_not_computing() {
        if !Confinement::of_this_kernel().seccomp {
            return;
        }
        let path = std::env::current_exe().expect("a path");
        let file = std::fs::File::open(&path).expect("this program");
        let parent = rustix::process::getppid().expect("a parent");
        let mut config = wasmtime::Config::new();
        config.parallel_compilation(false);
        let engine = wasmtime::Engine::new(&config).expect("an engine");
        let module = wat::parse_str(r#"(module (func (export "run")))"#).expect("valid");
        wasmtime::Module::new(&engine, &module).expect("code");
        let (denied, code) = apart(move || {
            let filter = filter().expect("a filter");
            seccompiler::apply_filter(&filter).expect("in force");
            let sum: usize = vec![vec![1_u8; 1 << 20]; 32].iter().map(Vec::len).sum();
            assert_eq!(sum, 32 << 20);
            assert_eq!(std::io::Read::read(&mut &file, &mut [0; 16]).expect("an open file"), 16);
            let denied = [
                std::net::UdpSocket::bind("127.0.0.1:0").map(drop).map_err(|error| error.kind()),
                std::os::unix::net::UnixStream::pair().map(drop).map_err(|error| error.kind()),
                std::fs::File::open(&path).map(drop).map_err(|error| error.kind()),
                // Where it is started after all, it only names its tests.
                std::process::Command::new(&path)
                    .arg("--list")
                    .spawn()
                    .map(drop)
                    .map_err(|error| error.kind()),
                std::thread::Builder::new().spawn(|| ()).map(drop).map_err(|error| error.kind()),
                rustix::process::test_kill_process(parent).map_err(|error| error.kind()),
                std::fs::remove_file("/nowhere").map_err(|error| error.kind()),
            ];
            (denied, wasmtime::Module::new(&engine, module).map(drop))
        });
        assert!(code.is_err(), "no memory is executable");
        for (at, denied) in denied.into_iter().enumerate() {
            assert_eq!(denied, Err(ErrorKind::PermissionDenied), "{at}");
        }
    }

    /// What a filter says of a system call: it is a program for the kernel's interpreter of BPF.
    fn verdict(filter: &BpfProgram, call: libc::c_long, arguments: [u64; 6]) -> SeccompAction {
        let arch: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
        let call = u32::try_from(call).expect("a number of a call");
        let mut words = vec![call, arch, 0, 0];
        words.extend(arguments.iter().flat_map(|argument| [*argument as u32, (argument >> 32) as u32]));
        let (mut value, mut next) = (0, 0);
        loop {
            let step = &filter[next];
            next += 1;
            let jump = |holds: bool| usize::from(if holds { step.jt } else { step.jf });
            match step.code {
                0x20 => value = words[step.k as usize / 4],
                0x54 => value &= step.k,
                0x05 => next += step.k as usize,
                0x15 => next += jump(value == step.k),
                0x25 => next += jump(value > step.k),
                0x35 => next += jump(value >= step.k),
                0x06 if step.k == u32::from(SeccompAction::Allow) => return SeccompAction::Allow,
                0x06 => return SeccompAction::Errno(step.k & 0xffff),
                other => panic!("{other:#x} is no step of such filters"),
            }
        }
    }

    #[test]
    fn seccomp_leaves_a_process_to_end_itself_and_no_other() {
        let filter = filter().expect("a filter");
        let (own, other) = (u64::from(std::process::id()), u64::from(std::process::id()) + 1);
        let denied = SeccompAction::Errno(libc::EPERM.cast_unsigned());
        let (read, executable) = (libc::PROT_READ as u64, libc::PROT_EXEC as u64);
        for (call, arguments, said) in [
            (libc::SYS_tgkill, [own, own, 6, 0, 0, 0], SeccompAction::Allow),
            (libc::SYS_tgkill, [other, other, 9, 0, 0, 0], denied.clone()),
            (libc::SYS_tkill, [own, 9, 0, 0, 0, 0], denied.clone()),
            (libc::SYS_kill, [other, 9, 0, 0, 0, 0], denied.clone()),
            (libc::SYS_mmap, [0, 4096, read, 0, 0, 0], SeccompAction::Allow),
            (libc::SYS_mmap, [0, 4096, read | executable, 0, 0, 0], denied),
        ] {
            assert_eq!(verdict(&filter, call, arguments), said, "{call} {arguments:?}");
        }
    }
}
