// Command init is the /init of a test's initramfs: it loads the modules,
// tells on the console what it found and switches the machine off.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

type report struct {
	Modules  []string `json:"modules"`
	Failed   []string `json:"failed"`
	Seed     string   `json:"seed"`
	SeedMode string   `json:"seed_mode"`
	UptimeMS int64    `json:"uptime_ms"`
}

func main() {
	up := uptime()
	var r report
	list, _ := os.ReadFile("/banger/modules")
	for m := range strings.FieldsSeq(string(list)) {
		r.Modules = append(r.Modules, m)
		if err := load(m); err != nil {
			r.Failed = append(r.Failed, m+": "+err.Error())
		}
	}
	if st, err := os.Stat("/banger/seed.json"); err == nil {
		r.SeedMode = st.Mode().String()
		b, _ := os.ReadFile("/banger/seed.json")
		r.Seed = string(b)
	}
	r.UptimeMS = up
	b, _ := json.Marshal(r)
	fmt.Printf("\nREPORT %s modules took %d ms\n", b, uptime()-up)
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

func uptime() int64 {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t)
	return t.Nano() / 1e6
}
