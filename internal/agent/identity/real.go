package identity

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/agent/netcfg"
)

// Real is the guest's machine: it needs root in a kernel of its own. The zero
// value lacks Token. Its methods are for one caller at a time.
type Real struct {
	// Token takes the new token.
	Token func([]byte)

	// network is what the card was given last. A clone's memory has its
	// template's, which is the same for all clones of a user-mode network.
	network netcfg.Config
}

var _ Machine = (*Real)(nil)

// SetToken hands the token on.
func (r *Real) SetToken(token []byte) { r.Token(token) }

// AddEntropy credits all of b's bits: the host drew them from its generator.
func (*Real) AddEntropy(b []byte) error {
	f, err := os.OpenFile("/dev/urandom", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// struct rand_pool_info: bits, bytes, data.
	const most = 512
	if len(b) > most {
		b = b[:most]
	}
	var pool struct {
		bits, size int32
		data       [most]byte
	}
	pool.bits, pool.size = int32(8*len(b)), int32(len(b))
	copy(pool.data[:], b)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&pool)))
	if errno != 0 {
		return fmt.Errorf("add entropy: %w", errno)
	}
	if _, _, errno = unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDRESEEDCRNG, 0); errno != 0 {
		return fmt.Errorf("reseed: %w", errno)
	}
	return nil
}

// SetClock steps CLOCK_REALTIME.
func (*Real) SetClock(t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	return nil
}

// SetHostname sets the kernel's name for the machine.
func (*Real) SetHostname(name string) error { return unix.Sethostname([]byte(name)) }

const (
	bootID     = "/proc/sys/kernel/random/boot_id"
	bootIDFile = "/run/banger/boot_id"
)

// ShowBootID mounts a file over the kernel's. It reaches every process but
// those with a /proc of their own.
func (*Real) ShowBootID(id string) error {
	if b, err := os.ReadFile(bootID); err == nil && strings.TrimSpace(string(b)) == id {
		return nil
	}
	// The mount is of the file, so a rewrite in place would do; but one that
	// was replaced meanwhile would not show.
	if _, err := os.Stat(bootIDFile); err == nil {
		_ = unix.Unmount(bootID, unix.MNT_DETACH)
	}
	if err := os.MkdirAll(filepath.Dir(bootIDFile), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(bootIDFile, []byte(id+"\n"), 0o444); err != nil {
		return err
	}
	if err := unix.Mount(bootIDFile, bootID, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount over %s: %w", bootID, err)
	}
	return nil
}

// Network configures lo and the first card; what they have already costs nothing.
func (r *Real) Network(c netcfg.Config) error {
	if !c.Empty() && c == r.network {
		return nil
	}
	if err := netcfg.LoopbackUp(); err != nil || c.Empty() {
		return err
	}
	card, err := netcfg.Card("/sys")
	if err != nil {
		return err
	}
	if err := netcfg.Apply("/sys", card, c); err != nil {
		return err
	}
	r.network = c
	return nil
}
