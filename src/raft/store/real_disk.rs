//! The operating system's file system behind [`Vfs`].
