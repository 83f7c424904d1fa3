// Package transfer turns files of the host into a tar stream and a hostile tar
// stream into files of the host. What comes from a guest is written beneath one
// directory and nowhere else, without devices, set-id bits or owners, whole or
// not at all, and never into the last free space of the disk.
//
// It knows nothing of VMs and prints nothing.
package transfer

import (
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/errs"
)

// Limits of what is taken from a guest.
const (
	MaxEntries = 2_000_000
	MaxPath    = 4096 // bytes
	MaxDepth   = 256
	// floorBytes and floorShare are the free space that stays: the smaller
	// of 2 GiB and 5 % of the disk.
	floorBytes = 2 << 30
	floorShare = 20
)

// Summary is what was copied.
type Summary struct {
	Entries uint64
	Bytes   uint64
	// Refused says what was left out and why, at most maxRefused lines.
	Refused []string
	// RefusedMore counts those beyond.
	RefusedMore int
}

const maxRefused = 20

func (s *Summary) refuse(name, why string) {
	if len(s.Refused) >= maxRefused {
		s.RefusedMore++
		return
	}
	s.Refused = append(s.Refused, name+": "+why)
}

// Progress is told how many bytes were copied so far.
type Progress func(bytes uint64)

func (p Progress) tell(n uint64) {
	if p != nil {
		p(n)
	}
}

// cleanName makes a tar entry's name a path beneath the top, "." for the top
// itself; why says what is wrong with it otherwise.
func cleanName(name string) (clean, why string) {
	switch {
	case name == "":
		return "", "has no name"
	case len(name) > MaxPath:
		return "", "its name is too long"
	case strings.ContainsRune(name, 0):
		return "", "its name holds a NUL"
	case strings.HasPrefix(name, "/"):
		return "", "its name is absolute"
	}
	depth := 0
	for _, part := range strings.Split(name, "/") {
		switch part {
		case "..":
			return "", "its name leads outside"
		case "", ".":
		default:
			depth++
		}
	}
	if depth > MaxDepth {
		return "", "lies too deep"
	}
	return path.Clean(name), ""
}

// linkInside says whether a symlink at name (beneath the top) stays beneath
// the top.
func linkInside(name, target string) bool {
	if target == "" || strings.HasPrefix(target, "/") || strings.ContainsRune(target, 0) || len(target) > MaxPath {
		return false
	}
	p := path.Join(path.Dir(name), target)
	return p != ".." && !strings.HasPrefix(p, "../")
}

// space watches the free space of the disk that a directory is on.
type space struct {
	dir   *os.File
	floor uint64 // for tests; 0: by rule
}

// room fails when writing n more bytes would go below the floor.
func (s space) room(n uint64) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(s.dir.Fd()), &st); err != nil {
		return nil // a filesystem that does not tell has to fail by itself
	}
	bs := uint64(st.Bsize)
	free, floor := st.Bavail*bs, s.floor
	if floor == 0 {
		floor = min(floorBytes, st.Blocks*bs/floorShare)
	}
	if free < floor || free-floor < n {
		return errs.New(errs.Exhausted, "no_space", "not enough space in %s: %s free, of which %s stay free", s.dir.Name(), sizeText(free), sizeText(floor)).
			WithHint("df -h %s", s.dir.Name())
	}
	return nil
}
