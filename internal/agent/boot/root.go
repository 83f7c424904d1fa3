package boot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/agent/disks"
	"github.com/banger-dev/banger/internal/agent/inroot"
)

// Mount points in the initramfs; they vanish with it.
const (
	imageDir  = "/image"
	systemDir = "/system"
	newRoot   = "/newroot"
)

// storage are the directories that must not lie on overlayfs, because what
// lives in them lays overlays of its own.
var storage = []string{"docker", "containerd", "containers", "buildkit", "kubelet"}

// mountRoot lays the system disk over the image. Without a system disk the
// VM's changes live in memory.
func (c *chain) mountRoot(context.Context) error {
	// noload: the image is never written, so there is no journal to replay,
	// and a read-only device could not be.
	if err := mountDisk(c.found.Device(disks.Image), imageDir, unix.MS_RDONLY|unix.MS_NOATIME, "noload"); err != nil {
		return err
	}
	if dev := c.found.Device(disks.System); dev != "" {
		if err := mountDisk(dev, systemDir, unix.MS_NOATIME, ""); err != nil {
			return err
		}
	} else if err := mountNew("tmpfs", systemDir, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, dir := range []string{systemDir + "/upper", systemDir + "/work", newRoot} {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	data := "lowerdir=" + imageDir + ",upperdir=" + systemDir + "/upper,workdir=" + systemDir + "/work"
	if err := mountNew("overlay", newRoot, "overlay", 0, data); err != nil {
		return err
	}
	var err error
	if c.root, err = inroot.Open(newRoot); err != nil {
		return err
	}
	if c.found[disks.System] == "" {
		return nil
	}
	if c.system, err = os.Open(systemDir); err != nil {
		return err
	}
	c.grow(disks.System, c.system)
	return nil
}

func mountDisk(dev, dir string, flags uintptr, data string) error {
	if dev == "" {
		return errors.New("no such disk")
	}
	return mountNew(dev, dir, "ext4", flags, data)
}

// grow gives a filesystem the size its disk has got since the last boot.
func (c *chain) grow(serial string, mounted *os.File) {
	if _, err := disks.Grow(c.found[serial], mounted); err != nil {
		c.warn("%s disk: %v", serial, err)
	}
}

// mountStorage binds the system disk's /storage over what must not lie on
// overlayfs, in images of a distribution (those that have a /var/lib).
func (c *chain) mountStorage(context.Context) error {
	if c.system == nil {
		return nil
	}
	if _, err := c.root.Stat("/var/lib"); err != nil {
		return nil
	}
	for _, name := range storage {
		if err := c.bindStorage(name); err != nil {
			c.warn("/var/lib/%s stays on the overlay: %v", name, err)
		}
	}
	return nil
}

func (c *chain) bindStorage(name string) error {
	target, err := c.mountPoint("/var/lib/"+name, 0o711)
	if err != nil {
		return err
	}
	defer target.Close()
	source := systemDir + "/storage/" + name
	if err := seedDir(inroot.MountPath(target), source); err != nil {
		return err
	}
	return unix.Mount(source, inroot.MountPath(target), "", unix.MS_BIND, "")
}

// mountHome mounts the work disk at root's home, filled once with what the
// image has there.
func (c *chain) mountHome(context.Context) error {
	dev := c.found.Device(disks.Work)
	if dev == "" {
		return nil
	}
	target, err := c.mountPoint("/root", 0o700)
	if err != nil {
		c.warn("a directory takes the place of the image's /root: %v", err)
		if target, _, err = c.root.RealDir("/root", 0o700); err != nil {
			return err
		}
	}
	defer target.Close()
	const dir = "/work"
	if err := mountDisk(dev, dir, unix.MS_NOATIME, ""); err != nil {
		c.warn("work disk: %v", err)
		return nil
	}
	home, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer home.Close()
	c.grow(disks.Work, home)
	if err := seedHome(inroot.MountPath(target), home); err != nil {
		c.warn("root's home: %v", err)
	}
	return unix.Mount(dir, inroot.MountPath(target), "", unix.MS_MOVE, "")
}

// mountModules mounts the kernel's modules where modprobe looks for them.
func (c *chain) mountModules(context.Context) error {
	dev := c.found.Device(disks.Modules)
	if dev == "" {
		return nil
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	release := unix.ByteSliceToString(u.Release[:])
	if release == "" || strings.ContainsAny(release, "/") {
		return fmt.Errorf("kernel release %q", release)
	}
	target, err := c.mountPoint(path.Join("/lib/modules", release), 0o755)
	if err == nil {
		defer target.Close()
		c.modulesAt, _ = os.Readlink(inroot.MountPath(target))
		c.modulesAt = strings.TrimPrefix(c.modulesAt, newRoot)
		err = unix.Mount(dev, inroot.MountPath(target), "ext4", unix.MS_RDONLY|unix.MS_NOATIME, "noload")
	}
	if err != nil {
		c.warn("kernel modules: %v", err)
	}
	return nil
}

// systemDirs are where the early mounts go, in the order of moving: /proc is
// last, for inroot.MountPath needs it.
var systemDirs = []string{"/sys", "/dev", "/run", "/proc"}

// mountPoint opens a directory of the image to mount on, made when missing.
// An image's link may lead anywhere in the image but to where the system's own
// mounts will be, which would hide the new one.
func (c *chain) mountPoint(name string, mode uint32) (*os.File, error) {
	f, err := c.root.MkdirAll(name, mode)
	if err != nil {
		return nil, err
	}
	at, err := os.Readlink(inroot.MountPath(f))
	if err == nil {
		at = strings.TrimPrefix(at, newRoot)
		for _, dir := range systemDirs {
			if at == dir || strings.HasPrefix(at, dir+"/") {
				err = fmt.Errorf("%s leads to %s", name, at)
			}
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// mountSystem moves the early mounts into the new root and adds those that a
// system wants besides.
func (c *chain) mountSystem(context.Context) error {
	const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for _, m := range []struct {
		kind, dir string
		flags     uintptr
		data      string
	}{
		{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"},
		{"tmpfs", "/dev/shm", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"cgroup2", "/sys/fs/cgroup", safe, "nsdelegate,memory_recursiveprot"},
	} {
		if err := mountNew(m.kind, m.dir, m.kind, m.flags, m.data); err != nil {
			c.warn("%v", err)
		}
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, "/dev/"+name); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	for _, dir := range systemDirs {
		target, replaced, err := c.root.RealDir(dir, 0o755)
		if err != nil {
			return fmt.Errorf("the image's %s: %w", dir, err)
		}
		if replaced {
			c.warn("a directory takes the place of the image's %s", dir)
		}
		err = unix.Mount(dir, inroot.MountPath(target), "", unix.MS_MOVE, "")
		target.Close()
		if err != nil {
			return fmt.Errorf("move %s: %w", dir, err)
		}
	}
	return nil
}

// switchRoot makes the overlay "/", frees the initramfs and lets go of the
// mounts that only it could see.
func (c *chain) switchRoot(context.Context) error {
	c.root.Close()
	for _, dir := range []string{systemDir, imageDir} {
		// The overlay holds the filesystems; these are names for them.
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			c.warn("unmount %s: %v", dir, err)
		}
	}
	if err := freeInitramfs(); err != nil {
		c.warn("free the initramfs: %v", err)
	}
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return os.Chdir("/")
}

// freeInitramfs unlinks everything on the root filesystem itself, which is
// memory, and enters nothing mounted below it.
func freeInitramfs() error {
	var st unix.Stat_t
	if err := unix.Stat("/", &st); err != nil {
		return err
	}
	return freeDir("/", st.Dev)
}

func freeDir(dir string, dev uint64) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		p := path.Join(dir, e.Name())
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil || st.Dev != dev {
			continue
		}
		if e.IsDir() {
			errs = append(errs, freeDir(p, dev))
			_ = unix.Rmdir(p) // a mount point stays
			continue
		}
		errs = append(errs, unix.Unlink(p))
	}
	return errors.Join(errs...)
}
