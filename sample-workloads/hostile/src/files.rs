//! Files without number and without end.

use std::{
    fs::{self, File},
    io::Write,
};

use wasip2::{
    cli::stdout::get_stdout,
    filesystem::{
        preopens::get_directories,
        types::{Descriptor, DescriptorFlags, OpenFlags, PathFlags},
    },
    io::streams::OutputStream,
};

use crate::hold;

/// Bytes after which a stream of a file begins anew, so that the file stays small.
const STREAM_BYTES: usize = 1 << 20;

/// Folders in each other, made from within as no path is so long.
pub fn nest(folder: &str, count: usize) {
    let mut inner = open_folder(folder);
    let mut made = 0;
    while made < count && inner.create_directory_at("d").is_ok() {
        let flags = DescriptorFlags::READ | DescriptorFlags::MUTATE_DIRECTORY;
        match inner.open_at(PathFlags::empty(), "d", OpenFlags::DIRECTORY, flags) {
            Ok(next) => inner = next,
            Err(_) => break,
        }
        made += 1;
    }
    println!("nested {made} folders");
}

fn open_folder(folder: &str) -> Descriptor {
    let found = get_directories().into_iter().find(|(_, path)| path == folder);
    found.unwrap_or_else(|| panic!("{folder} is not mounted")).0
}

pub fn make(folder: &str, count: usize) {
    let made = (0..count).take_while(|number| File::create(format!("{folder}/{number}")).is_ok()).count();
    println!("made {made} files");
}

/// One file, opened again and again, then sockets.
pub fn open(folder: &str, count: usize) {
    let path = format!("{folder}/open");
    fs::write(&path, "x").expect("one file can be written");
    let files: Vec<_> = (0..count).map_while(|_| File::open(&path).ok()).collect();
    let sockets: Vec<_> = (0..count).map_while(|_| std::net::UdpSocket::bind("127.0.0.1:0").ok()).collect();
    hold(&format!("holds {} files and {} sockets", files.len(), sockets.len()), (files, sockets));
}

/// Listings of one large folder, each read by one name.
pub fn list(folder: &str, names: usize, listings: usize) {
    for number in 0..names {
        File::create(format!("{folder}/{number:060}")).expect("a file can be made");
    }
    let folder = open_folder(folder);
    let begin = || {
        let listing = folder.read_directory().ok()?;
        listing.read_directory_entry().ok()?;
        Some(listing)
    };
    let held: Vec<_> = (0..listings).map_while(|_| begin()).collect();
    hold(&format!("holds {} listings of {names} names", held.len()), held);
}

/// A little, to the disk, again and again.
pub fn sync(folder: &str) {
    let mut file = File::create(format!("{folder}/synced")).expect("a file can be made");
    println!("syncs");
    loop {
        file.write_all(&[0; 4096]).expect("the disk has room");
        file.sync_all().expect("the disk takes it");
    }
}

/// As much as the disk takes, and more as soon as it has room again.
pub fn fill(folder: &str) {
    let mut file = File::create(format!("{folder}/full")).expect("a file can be made");
    let (mut mib, mut said) = (0, false);
    loop {
        match file.write_all(&[b'x'; 1 << 20]) {
            Ok(()) => (mib, said) = (mib + 1, false),
            Err(error) if !said => {
                println!("wrote {mib} MiB, then {:?}", error.kind());
                said = true;
            }
            Err(_) => {}
        }
    }
}

/// Takes the permits of many streams of one file, and of as many of standard output, uses all of them together, and waits
/// for none.
pub fn permits(folder: &str, count: usize) {
    let file = open_file(folder);
    let begin = || file.write_via_stream(0).expect("a stream of a file");
    let outputs: Vec<_> = (0..count).map(|_| get_stdout()).collect();
    let mut files: Vec<_> = (0..count).map(|_| (begin(), 0)).collect();
    println!("writes to {count} streams of each");
    let bytes = vec![b'x'; 1 << 20];
    loop {
        let permits: Vec<_> = outputs
            .iter()
            .chain(files.iter().map(|(stream, _)| stream))
            .map(OutputStream::check_write)
            .collect();
        let (of_outputs, of_files) = permits.split_at(count);
        for (stream, permit) in outputs.iter().zip(of_outputs) {
            if let Ok(permit @ 1..) = permit {
                // What is refused is tried again.
                let _ = stream.write(&bytes[..bytes.len().min(*permit as usize)]);
            }
        }
        for ((stream, written), permit) in files.iter_mut().zip(of_files) {
            let Ok(permit) = permit else {
                (*stream, *written) = (begin(), 0);
                continue;
            };
            let permit = bytes.len().min(*permit as usize);
            if permit > 0 && stream.write(&bytes[..permit]).is_ok() {
                *written += permit;
            }
            if *written >= STREAM_BYTES {
                (*stream, *written) = (begin(), 0);
            }
        }
    }
}

/// Writes a MiB again and again that nobody has permitted.
pub fn unpermitted(stream: &OutputStream) {
    println!("writes without a permit");
    let bytes = vec![b'x'; 1 << 20];
    loop {
        // What is refused is tried again.
        let _ = stream.write(&bytes);
    }
}

/// Of a new file.
pub fn stream(folder: &str) -> OutputStream {
    open_file(folder).write_via_stream(0).expect("a stream of a file")
}

fn open_file(folder: &str) -> Descriptor {
    let flags = DescriptorFlags::READ | DescriptorFlags::WRITE;
    let opened = open_folder(folder).open_at(PathFlags::empty(), "written", OpenFlags::CREATE, flags);
    opened.expect("a file can be made")
}
