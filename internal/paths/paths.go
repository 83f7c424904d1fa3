// Package paths names every file, socket and directory that banger makes on
// the host; docs/layout.md is its prose twin. It creates nothing.
package paths

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// MaxSocket is the longest path a Unix socket may have on Linux (sun_path
// less its final NUL).
const MaxSocket = 107

// Layout is where one daemon keeps things. All paths are absolute.
type Layout struct {
	Config  string // config.toml, ssh key
	State   string // database, VMs, logs
	Data    string // images, kernels, templates; may be shared by daemons
	Cache   string // downloads; may be deleted at any time
	Runtime string // sockets; short, survives logout
}

// Environment variables that move each part; BANGER_HOME moves all of them
// below one directory (used by tests).
const (
	EnvHome    = "BANGER_HOME"
	EnvConfig  = "BANGER_CONFIG_DIR"
	EnvState   = "BANGER_STATE_DIR"
	EnvData    = "BANGER_DATA_DIR"
	EnvCache   = "BANGER_CACHE_DIR"
	EnvRuntime = "BANGER_RUNTIME_DIR"
)

// FromEnv derives the layout of uid from the environment by XDG's rules.
// Sockets do not lie under XDG_RUNTIME_DIR, which vanishes at logout while VMs
// live on: they lie in /run/banger for root and /tmp/banger-UID otherwise,
// unless the state directory is short enough to hold them.
func FromEnv(uid int, getenv func(string) string) (Layout, error) {
	home := getenv("HOME")
	var l Layout
	if b := getenv(EnvHome); b != "" {
		l = Layout{
			Config: filepath.Join(b, "config"), State: filepath.Join(b, "state"),
			Data: filepath.Join(b, "data"), Cache: filepath.Join(b, "cache"),
			Runtime: filepath.Join(b, "run"),
		}
	} else {
		if home == "" && (getenv("XDG_CONFIG_HOME") == "" || getenv("XDG_STATE_HOME") == "" || getenv("XDG_DATA_HOME") == "" || getenv("XDG_CACHE_HOME") == "") {
			return Layout{}, fmt.Errorf("HOME is not set, so there is no place for banger's files: set HOME or %s", EnvHome)
		}
		xdg := func(name, def string) string {
			if v := getenv(name); filepath.IsAbs(v) {
				return filepath.Join(v, "banger")
			}
			return filepath.Join(home, def, "banger")
		}
		l = Layout{
			Config: xdg("XDG_CONFIG_HOME", ".config"), State: xdg("XDG_STATE_HOME", ".local/state"),
			Data: xdg("XDG_DATA_HOME", ".local/share"), Cache: xdg("XDG_CACHE_HOME", ".cache"),
		}
		l.Runtime = filepath.Join(l.State, "run")
	}
	for env, p := range map[string]*string{EnvConfig: &l.Config, EnvState: &l.State, EnvData: &l.Data, EnvCache: &l.Cache, EnvRuntime: &l.Runtime} {
		if v := getenv(env); v != "" {
			*p = v
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return Layout{}, err
		}
		*p = abs
	}
	// the longest socket: RUNTIME/vm/<16 hex>/console.sock
	if len(filepath.Join(l.Runtime, "vm", "0123456789abcdef", "console.sock")) > MaxSocket {
		base := os.TempDir()
		if uid == 0 {
			base = "/run"
		}
		l.Runtime = filepath.Join(base, "banger-"+strconv.Itoa(uid)+"-"+shortHash(l.Runtime))
	}
	return l, nil
}

// ConfigFile is the user's settings.
func (l Layout) ConfigFile() string { return filepath.Join(l.Config, "config.toml") }

// SSHKey is the default of ssh_key_path.
func (l Layout) SSHKey() string { return filepath.Join(l.Config, "ssh", "id_ed25519") }

// Socket is the daemon's API.
func (l Layout) Socket() string { return filepath.Join(l.Runtime, "bangerd.sock") }

// Lock is held by the one daemon of a state directory.
func (l Layout) Lock() string { return filepath.Join(l.State, "bangerd.lock") }

// DaemonLog is the daemon's own log.
func (l Layout) DaemonLog() string { return filepath.Join(l.State, "bangerd.log") }

// Database is the store.
func (l Layout) Database() string { return filepath.Join(l.State, "banger.db") }

// VMDir holds what belongs to one VM and outlives a reboot.
func (l Layout) VMDir(id string) string { return filepath.Join(l.State, "vms", id) }

// VMRun holds one VM's sockets.
func (l Layout) VMRun(id string) string { return filepath.Join(l.Runtime, "vm", id) }

// Images holds images by digest and their names.
func (l Layout) Images() string { return filepath.Join(l.Data, "images") }

// Kernels holds kernels by digest and their names.
func (l Layout) Kernels() string { return filepath.Join(l.Data, "kernels") }

// Templates holds templates by key.
func (l Layout) Templates() string { return filepath.Join(l.Data, "templates") }

// Files in a VM's directory.
const (
	SystemDisk = "system.ext4"
	WorkDisk   = "work.ext4"
	ConsoleLog = "console.log"
	VMMLog     = "hypervisor.log"
	ShimLog    = "shim.log"
	Sidecar    = "vm.json"
	RAMFile    = "ram"
	Devices    = "devices"
)

// Sockets in a VM's run directory.
const (
	ControlSock = "ctl.sock"
	AgentSock   = "agent.sock"
	ConsoleSock = "console.sock"
	ShimSock    = "shim.sock"
)

func shortHash(s string) string {
	var h uint32 = 2166136261
	for i := range len(s) {
		h = (h ^ uint32(s[i])) * 16777619
	}
	return strconv.FormatUint(uint64(h), 36)
}
