//! What `std::fs` does below a directory, as lines on stdout that are the same in a pod and on Linux.
//!
//! `files DIR` does a bit of everything, `files open PATH` opens one file.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["open", path] => println!("opened: {:?}", File::open(path).map(drop).map_err(|error| error.kind())),
        [dir] => all(Path::new(dir)),
        _ => panic!("files DIR | files open PATH"),
    }
}

fn all(dir: &Path) {
    let path = |name: &str| dir.join(name);
    fs::create_dir(path("sub")).unwrap();
    println!("made twice: {:?}", fs::create_dir(path("sub")).map_err(|error| error.kind()));
    bytes(&path("sub/file"));
    names(dir);
    println!("not there: {:?}", File::open(path("nothing")).map(drop).map_err(|error| error.kind()));
    println!("a directory read: {:?}", fs::read(path("sub")).map(drop).map_err(|error| error.kind()));
    println!("up and down again: {}", fs::read_dir(path("sub/../sub")).unwrap().count());
    fs::create_dir(path("many")).unwrap();
    for index in 0..300 {
        File::create(path(&format!("many/{index:03}"))).unwrap();
    }
    let mut found: Vec<_> = fs::read_dir(path("many")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    found.sort();
    println!("{} entries from {:?} to {:?}", found.len(), found[0], found[299]);
    println!("not empty: {:?}", fs::remove_dir(path("many")).is_err());
    fs::remove_dir_all(path("many")).unwrap();
    fs::remove_dir_all(path("sub")).unwrap();
    println!("left: {}", fs::read_dir(dir).unwrap().count());
}

fn bytes(path: &Path) {
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap();
    file.write_all(&vec![1; 200_000]).unwrap();
    file.seek(SeekFrom::Start(100_000)).unwrap();
    file.write_all(&[2; 10]).unwrap();
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    let mut appended = OpenOptions::new().append(true).open(path).unwrap();
    appended.write_all(b"end").unwrap();
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut text).unwrap();
    println!("read {} with {:?} and {:?}", text.len(), &text[99_999..100_011], &text[200_000..]);
    println!("at the end: {:?}", file.read(&mut [0; 4]));
    file.set_len(5).unwrap();
    println!("cut to {}", file.metadata().unwrap().len());
    file.set_modified(UNIX_EPOCH + Duration::from_secs(1_000_000)).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    println!("modified {:?}", modified.duration_since(UNIX_EPOCH).unwrap());
    let read_only = File::open(path).unwrap();
    println!("written where it is read only: {}", (&read_only).write(b"x").is_err());
}

fn names(dir: &Path) {
    let (from, to) = (dir.join("sub/file"), dir.join("moved"));
    fs::rename(&from, &to).unwrap();
    println!("moved: {} {}", from.exists(), to.exists());
    fs::hard_link(&to, &from).unwrap();
    fs::remove_file(&to).unwrap();
    println!("linked: {:?}", fs::read(&from).unwrap());
    let metadata = fs::metadata(&from).unwrap();
    println!("a file: {}, a directory: {}", metadata.is_file(), fs::metadata(dir).unwrap().is_dir());
    println!("removed twice: {:?}", fs::remove_file(&to).map_err(|error| error.kind()));
}
