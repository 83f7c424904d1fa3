package doctor

import (
	"context"
	"fmt"

	"github.com/banger-dev/banger/internal/units"
)

// Place is a directory with the bytes it should have free: under Need work
// fails, under Want it is tight. Need may be 0.
type Place struct {
	What, Path string
	Need, Want int64
}

// Space checks the free space of each place.
func Space(h Host, places []Place) Provider {
	return func(context.Context) []Check {
		var out []Check
		for _, p := range places {
			c := Check{Name: "space " + p.What, Status: OK, Why: p.What + " lie in " + p.Path}
			free, err := h.Free(p.Path)
			switch {
			case err != nil:
				c.Status, c.Message = Warn, "cannot be found out: "+oneLine(err.Error())
			case free < p.Need:
				c.Status, c.Fix = Fail, []string{"banger system gc", "df -h " + p.Path}
			case free < p.Want:
				c.Status, c.Fix = Warn, []string{"banger system gc", "df -h " + p.Path}
			}
			if err == nil {
				c.Message = fmt.Sprintf("%s free in %s", units.FormatSize(free), p.Path)
				if p.Want > 0 {
					c.Message += fmt.Sprintf(" (%s is comfortable)", units.FormatSize(p.Want))
				}
			}
			out = append(out, c)
		}
		return out
	}
}

// Memory checks that one VM of the default size finds room: vm is all that it
// costs the host in bytes, the emulator's code buffer included.
func Memory(h Host, vm int64) Provider {
	return func(context.Context) []Check {
		c := Check{Name: "memory", Status: OK, Why: "a VM whose memory the host does not have is killed"}
		free, total := h.meminfo("MemAvailable"), h.meminfo("MemTotal")
		c.Message = fmt.Sprintf("%s of %s available, a VM takes up to %s", units.FormatSize(free), units.FormatSize(total), units.FormatSize(vm))
		switch {
		case total == 0:
			c.Status, c.Message = Warn, "/proc/meminfo cannot be read"
		case total < vm:
			c.Status, c.Fix = Fail, []string{"give VMs less: banger config edit   # [vm_defaults] memory"}
		case free < vm:
			c.Status, c.Fix = Warn, []string{"stop a VM (banger ps), or give VMs less: banger config edit   # [vm_defaults] memory"}
		}
		return []Check{c}
	}
}

// Size is a default of VMs with where it comes from.
type Size struct{ Name, Value, Origin string }

// Sizes tells the sizes of a VM for which none are given.
func Sizes(sizes []Size) Provider {
	return func(context.Context) []Check {
		var out []Check
		for _, s := range sizes {
			out = append(out, Check{Name: "default " + s.Name, Status: OK, Message: s.Value + " (" + s.Origin + ")", Why: "what a VM gets that asks for nothing else"})
		}
		return out
	}
}
