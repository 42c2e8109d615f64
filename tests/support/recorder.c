// Records the names that a process looks up and the addresses of other machines that it connects or sends to, and
// refuses both: nothing leaves. Preload it (LD_PRELOAD); lines are appended to the file that RECORDED names.
// Connecting a datagram socket sends nothing (Ray does it to learn its own address), so there only what is sent counts.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void record(const char *what, const char *where) {
  int file = open(getenv("RECORDED"), O_WRONLY | O_CREAT | O_APPEND, 0644);
  dprintf(file, "%s %s\n", what, where);
  close(file);
}

// Numbers, this machine's own name, and none at all need no resolver.
static int needs_no_lookup(const char *name) {
  unsigned char address[16];
  char host[256] = "";
  gethostname(host, sizeof host - 1);
  return name == NULL || *name == 0 || !strcmp(name, "localhost") || !strcmp(name, host) ||
         inet_pton(AF_INET, name, address) == 1 || inet_pton(AF_INET6, name, address) == 1;
}

// An address is this machine's own if a socket can be bound to it; so can one to a group of machines.
static int is_own(struct sockaddr_storage at) {
  struct sockaddr_in *in = (struct sockaddr_in *)&at;
  struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&at;
  if (at.ss_family == AF_INET ? IN_MULTICAST(ntohl(in->sin_addr.s_addr)) : IN6_IS_ADDR_MULTICAST(&in6->sin6_addr)) return 0;
  in->sin_port = 0; // at the same place in both
  int probe = socket(at.ss_family, SOCK_DGRAM, 0);
  int bound = bind(probe, (struct sockaddr *)&at, at.ss_family == AF_INET ? sizeof *in : sizeof *in6);
  close(probe);
  return bound == 0;
}

static int leaves(const char *what, const struct sockaddr *to) {
  char where[INET6_ADDRSTRLEN] = "";
  struct sockaddr_storage at = {0};
  if (to->sa_family == AF_INET) {
    memcpy(&at, to, sizeof(struct sockaddr_in));
    inet_ntop(AF_INET, &((struct sockaddr_in *)&at)->sin_addr, where, sizeof where);
  } else if (to->sa_family == AF_INET6) {
    memcpy(&at, to, sizeof(struct sockaddr_in6));
    inet_ntop(AF_INET6, &((struct sockaddr_in6 *)&at)->sin6_addr, where, sizeof where);
  } else {
    return 0; // within this machine
  }
  if (is_own(at)) return 0;
  record(what, where);
  errno = ENETUNREACH;
  return 1;
}

static int send_leaves(int socket, const struct sockaddr *to) {
  struct sockaddr_storage peer;
  socklen_t size = sizeof peer;
  if (to == NULL && getpeername(socket, (struct sockaddr *)&peer, &size) == 0) to = (struct sockaddr *)&peer;
  return to != NULL && leaves("send", to);
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
  if (needs_no_lookup(name)) return REAL(getaddrinfo)(name, service, hints, found);
  record("lookup", name);
  return EAI_NONAME;
}

struct hostent *gethostbyname(const char *name) {
  if (needs_no_lookup(name)) return REAL(gethostbyname)(name);
  record("lookup", name);
  return NULL;
}

struct hostent *gethostbyname2(const char *name, int family) {
  if (needs_no_lookup(name)) return REAL(gethostbyname2)(name, family);
  record("lookup", name);
  return NULL;
}

int gethostbyname_r(const char *name, struct hostent *entry, char *buffer, size_t size, struct hostent **found, int *error) {
  if (needs_no_lookup(name)) return REAL(gethostbyname_r)(name, entry, buffer, size, found, error);
  record("lookup", name);
  *found = NULL, *error = HOST_NOT_FOUND;
  return ENOENT;
}

int gethostbyname2_r(const char *name, int family, struct hostent *entry, char *buffer, size_t size,
                     struct hostent **found, int *error) {
  if (needs_no_lookup(name)) return REAL(gethostbyname2_r)(name, family, entry, buffer, size, found, error);
  record("lookup", name);
  *found = NULL, *error = HOST_NOT_FOUND;
  return ENOENT;
}

int connect(int socket, const struct sockaddr *to, socklen_t size) {
  int type = 0;
  socklen_t length = sizeof type;
  getsockopt(socket, SOL_SOCKET, SO_TYPE, &type, &length);
  return type != SOCK_DGRAM && leaves("connect", to) ? -1 : REAL(connect)(socket, to, size);
}

ssize_t send(int socket, const void *data, size_t length, int flags) {
  return send_leaves(socket, NULL) ? -1 : REAL(send)(socket, data, length, flags);
}

ssize_t sendto(int socket, const void *data, size_t length, int flags, const struct sockaddr *to, socklen_t size) {
  return send_leaves(socket, to) ? -1 : REAL(sendto)(socket, data, length, flags, to, size);
}

ssize_t sendmsg(int socket, const struct msghdr *message, int flags) {
  return send_leaves(socket, message->msg_name) ? -1 : REAL(sendmsg)(socket, message, flags);
}

int sendmmsg(int socket, struct mmsghdr *messages, unsigned int count, int flags) {
  for (unsigned int i = 0; i < count; i++)
    if (send_leaves(socket, messages[i].msg_hdr.msg_name)) return -1;
  return REAL(sendmmsg)(socket, messages, count, flags);
}
